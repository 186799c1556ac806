"""From a source to training batches: inspect (for planning), prepare (once), Dataset (memory-mapped), batches.

Nothing here imports torch until the first batch is asked for.
"""

from jobs.data.batches import TrainingBatches
from jobs.data.dataset import Dataset
from jobs.data.encodings import Encoding, TextEncoding
from jobs.data.identity import fingerprint
from jobs.data.inspection import inspect
from jobs.data.order import GlobalOrder
from jobs.data.preparation import prepare
from jobs.data.samples import read_samples

__all__ = [
    "Dataset",
    "Encoding",
    "GlobalOrder",
    "TextEncoding",
    "TrainingBatches",
    "fingerprint",
    "inspect",
    "prepare",
    "read_samples",
]
