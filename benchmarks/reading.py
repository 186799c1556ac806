"""Reading training batches: TrainingBatches against a torch DataLoader with two workers.

    python benchmarks/reading.py [--epochs 5] [--json]

Both give shuffled, standardized float32 batches of 128 from the same samples: Fashion-MNIST, or digits where that
can't be had. The DataLoader is what one would write: a Dataset over the uint8 arrays that normalizes sample by
sample, default collation, workers that persist over the epochs. Each epoch of one is followed by one of the other,
and the medians are compared. Memory growth is that of this process between the first epoch and the last.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from jobs.data import Dataset, TrainingBatches, prepare
from jobs.data.encodings import ImageEncoding
from jobs.data.fetch import get
from jobs.errors import DataError
from jobs.spec.data import Data

BATCH_SIZE = 128
NUM_WORKERS = 2
RATIO_WANTED = 5.0


class PlainDataset(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """One sample at a time, as PyTorch's tutorial does it."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, encoding: ImageEncoding) -> None:
        self.images = images
        self.labels = labels
        self.scale = encoding.scale
        self.mean = torch.tensor(encoding.mean)[:, None, None]
        self.std = torch.tensor(encoding.std)[:, None, None]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = torch.from_numpy(self.images[index]).float().mul_(self.scale)
        return image.sub_(self.mean).div_(self.std), int(self.labels[index])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    name, data = choose_data()
    with tempfile.TemporaryDirectory() as folder:
        prepare(data, "cross_entropy", Path(folder) / "dataset")
        result = compare(Dataset.open(Path(folder) / "dataset"), data, arguments.epochs)
    result = {"data": name, **result, "ratio_wanted": RATIO_WANTED}
    print(json.dumps(result, indent=2) if arguments.json else table(result))
    sys.exit(0 if result["ratio"] >= RATIO_WANTED else 1)


def choose_data() -> tuple[str, Data]:
    try:
        folder = get("fashion-mnist")
    except DataError as error:
        print(f"falling back to digits: {error}", file=sys.stderr)
        return "digits", Data.model_validate({"source": {"kind": "builtin", "name": "digits"}})
    return "fashion-mnist", Data.model_validate({"source": {"kind": "idx", "path": str(folder)}})


def compare(dataset: Dataset, data: Data, epochs: int) -> dict[str, Any]:
    """Samples a second and memory growth of both, over interleaved epochs."""
    num_samples = dataset.num_samples("train")
    batches = TrainingBatches(dataset, data, BATCH_SIZE, seed=0)
    assert isinstance(batches.encoding, ImageEncoding)
    images = dataset.raw("train", np.arange(num_samples))
    assert isinstance(images, np.ndarray)
    plain = PlainDataset(images, dataset.targets("train").copy(), batches.encoding)
    loader = DataLoader(plain, BATCH_SIZE, shuffle=True, num_workers=NUM_WORKERS, persistent_workers=True)

    def read_ours(epoch: int) -> int:
        steps = range(batches.order.num_steps(epoch), batches.order.num_steps(epoch + 1))
        return sum(len(batches.share(step)[1]) for step in steps)

    def read_loader(_: int) -> int:
        return sum(len(y) for _, y in loader)

    contenders: dict[str, Callable[[int], int]] = {"thresher": read_ours, "dataloader": read_loader}
    rates: dict[str, list[float]] = {key: [] for key in contenders}
    growth = dict.fromkeys(contenders, 0)
    for epoch in range(epochs + 1):
        for key, read in contenders.items():
            before = resident_bytes()
            start = time.perf_counter()
            count = read(epoch)
            seconds = time.perf_counter() - start
            if epoch > 0:  # the first one starts workers and maps pages
                rates[key].append(count / seconds)
                growth[key] += resident_bytes() - before
    medians = {key: statistics.median(values) for key, values in rates.items()}
    return {
        "num_samples": num_samples,
        "batch_size": BATCH_SIZE,
        "epochs": epochs,
        "samples_per_s": {key: round(value) for key, value in medians.items()},
        "ratio": round(medians["thresher"] / medians["dataloader"], 2),
        "rss_growth_bytes": growth,
    }


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['data']}: {result['num_samples']} samples, batch {result['batch_size']}, {result['epochs']} epochs",
        f"{'':24}{'samples/s':>12}{'RSS growth':>14}",
    ]
    labels = {"thresher": "TrainingBatches", "dataloader": f"DataLoader, {NUM_WORKERS} workers"}
    for key, label in labels.items():
        growth = result["rss_growth_bytes"][key] / 2**20
        lines.append(f"{label:24}{result['samples_per_s'][key]:>12,}{growth:>11.1f} MB")
    lines.append(f"ratio {result['ratio']:.1f}x (wanted: {result['ratio_wanted']:g}x)")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
