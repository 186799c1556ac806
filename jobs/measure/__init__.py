"""What a model file is worth: accuracy with its interval, latency, bytes; through the runtime, on this machine."""

from jobs.measure.artifacts import measure
from jobs.measure.latency import latencies
from jobs.measure.metrics import details, evaluate, interval, paired_delta
from jobs.measure.session import load_proto, open_session, predict
from jobs.measure.size import compressed_bytes, count_params, macs

__all__ = [
    "compressed_bytes",
    "count_params",
    "details",
    "evaluate",
    "interval",
    "latencies",
    "load_proto",
    "macs",
    "measure",
    "open_session",
    "paired_delta",
    "predict",
]
