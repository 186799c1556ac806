"""What a model file is worth: accuracy with its interval, latency, bytes; through the runtime, on this machine."""

from jobs.measure.artifacts import measure
from jobs.measure.latency import latencies
from jobs.measure.metrics import details, evaluate, interval, paired_delta
from jobs.measure.outputs import IGNORED, condense
from jobs.measure.session import largest_difference, load_proto, open_session, predict, predict_condensed
from jobs.measure.size import compressed_bytes, count_params, macs

__all__ = [
    "IGNORED",
    "compressed_bytes",
    "condense",
    "count_params",
    "details",
    "evaluate",
    "interval",
    "largest_difference",
    "latencies",
    "load_proto",
    "macs",
    "measure",
    "open_session",
    "paired_delta",
    "predict",
    "predict_condensed",
]
