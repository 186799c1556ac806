"""Every cell of the parity and the resume matrix, and the tables that docs/layouts.md shows.

python -m tests.multiprocess.parity [--models lstm,mlp] [--json FILE] [--docs docs/layouts.md]

Exits with 1 if a cell is further away from one process than the tolerance.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from jobs.layout import ParallelLayout
from tests.multiprocess.cells import (
    MODELS,
    ONE,
    OPTIMIZERS,
    RESUMED,
    STEPS,
    TOLERANCE,
    Cell,
    dataset_of,
    layouts,
    name,
    prepared,
    request_of,
    spec_of,
)
from tests.multiprocess.ranks import Ranks
from tests.multiprocess.works import Until

MARKS = ("<!-- parity -->", "<!-- /parity -->")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="some of the models, by comma")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    parser.add_argument("--docs", type=Path, help="a Markdown file whose tables to renew")
    options = parser.parse_args()
    models = options.models.split(",")
    ranks = Ranks(8)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        data_folder = prepared(Path(folder))
        parity = [cell for model in models for cell in parity_of(ranks, model, data_folder)]
        resume = [cell for optimizer in OPTIMIZERS for cell in resume_of(ranks, optimizer, data_folder)]
    ranks.close()
    text = "\n\n".join([_parity_table(parity, models), _resume_table(resume), _summary(parity, resume)])
    print(f"{text}\n\n{time.monotonic() - started:.0f} s")
    if options.json:
        options.json.write_text(json.dumps({"parity": parity, "resume": resume}, indent=1) + "\n")
    if options.docs:
        before, _, rest = options.docs.read_text().partition(MARKS[0])
        options.docs.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")
    return int(any(cell["away"] > TOLERANCE for cell in [*parity, *resume]))


def parity_of(ranks: Ranks, model: str, data_folder: Path) -> list[dict[str, Any]]:
    """A model in every layout, under every optimizer, against one process."""
    cells = []
    for optimizer in OPTIMIZERS:
        spec = spec_of(model, optimizer, data_folder)
        one = _trained(ranks, spec, ONE, data_folder)
        fall = 1.0 - float(one.losses[-1] / one.losses[0])
        for layout in layouts(model):
            losses, parameters = _trained(ranks, spec, layout, data_folder).away_from(one)
            cells.append(
                {
                    "model": model,
                    "optimizer": optimizer,
                    "layout": name(layout),
                    "losses": losses,
                    "parameters": parameters,
                    "away": max(losses, parameters),
                    "fall": fall,
                }
            )
            print(f"{model:12} {optimizer:6} {name(layout):24} losses {losses:.1e}, parameters {parameters:.1e}")
    return cells


def _trained(ranks: Ranks, spec: Any, layout: ParallelLayout, data_folder: Path) -> Cell:
    with tempfile.TemporaryDirectory() as folder:
        return Cell(ranks, spec, layout, data_folder, Path(folder))


def resume_of(ranks: Ranks, optimizer: str, data_folder: Path) -> list[dict[str, Any]]:
    """Saved half-way under each layout, taken up under each."""
    changes = {"train.checkpoint.every_steps": STEPS // 2, "train.schedule": "cosine", "train.gradient_clip": 0.5}
    spec = spec_of("transformer", optimizer, data_folder, **changes)
    dataset = dataset_of(spec, data_folder)
    one = _trained(ranks, spec, ONE, data_folder)
    cells = []
    for saving in RESUMED:
        with tempfile.TemporaryDirectory() as folder:
            saved = Path(folder) / "saved"
            until = Until(request_of(spec, saving, dataset, saved), step=STEPS // 2)
            ranks.run("tests.multiprocess.works:train_until", until, saving.size)
            for resuming in RESUMED:
                copied = Path(folder) / "resumed"
                shutil.copytree(saved, copied)
                losses, parameters = Cell(ranks, spec, resuming, data_folder, copied).away_from(one)
                shutil.rmtree(copied)
                cells.append(
                    {
                        "optimizer": optimizer,
                        "saved": name(saving),
                        "resumed": name(resuming),
                        "losses": losses,
                        "parameters": parameters,
                        "away": max(losses, parameters),
                    }
                )
                print(f"{optimizer:6} {name(saving):14} → {name(resuming):14} losses {losses:.1e}")
    return cells


def _parity_table(cells: list[dict[str, Any]], models: list[str]) -> str:
    rows = dict.fromkeys(cell["layout"] for cell in cells)
    lines = ["| data × tensor × pipeline | " + " | ".join(models) + " |", "|---" * (len(models) + 1) + "|"]
    for layout in rows:
        found = [[c["away"] for c in cells if c["layout"] == layout and c["model"] == model] for model in models]
        lines.append(f"| {layout} | " + " | ".join(f"{max(away):.0e}" if away else "refused" for away in found) + " |")
    return "\n".join(lines)


def _resume_table(cells: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(cell["saved"] for cell in cells))
    lines = ["| saved under ↓, resumed under → | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for saved in names:
        found = [max(c["away"] for c in cells if (c["saved"], c["resumed"]) == (saved, to)) for to in names]
        lines.append(f"| {saved} | " + " | ".join(f"{away:.0e}" for away in found) + " |")
    return "\n".join(lines)


def _summary(parity: list[dict[str, Any]], resume: list[dict[str, Any]]) -> str:
    falls = {(cell["model"], cell["optimizer"]): cell["fall"] for cell in parity}
    return (
        f"{len(parity)} cells of {STEPS} steps in fp32, SGD with momentum (rate 0.05) and AdamW (rate 0.001), and "
        f"{len(resume)} resumed ones (transformer): the larger of the relative difference of any loss and the "
        f"difference of any parameter to one process, the worse of the two optimizers. Meanwhile the losses fall by "
        f"{min(falls.values()):.0%} to {max(falls.values()):.0%}."
    )


if __name__ == "__main__":
    sys.exit(main())
