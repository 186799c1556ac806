"""How near a search comes to fronts that are known: Thresher's study against Optuna's own loop, with the same sampler.

    python benchmarks/fronts.py [--trials 200] [--seeds 5] [--algorithms tpe,nsga2] [--variables 5] [--json]

ZDT1 (Zitzler, Deb & Thiele 2000) has 5 to 30 variables and the front f2 = 1 - sqrt(f1). BNH (Binh & Korn 1997) has two
variables, two constraints, and the front x = y up to 3, then y = 3. Measured is the hypervolume of the legal points, as
a share of that of the published front: how much of what dominates a reference point is covered.

Thresher's side asks and tells one trial at a time through the study's files, with a sampler made anew for each trial
and one constraint (the larger excess); Optuna's has one sampler, both constraints, and keeps everything in memory. So
they draw different numbers, and the ratio has an error, which is printed. Whether the study does anything else than
Optuna's loop, the column `same seeds` says: whether each point is the same when that loop is seeded as Thresher is.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, QMCSampler, RandomSampler, TPESampler
from rich.console import Console
from rich.table import Table

from jobs.records import Trial
from jobs.spec import JobSpec
from orchestrator.searching.study import Study
from orchestrator.searching.study.samplers import seed_of

Point = tuple[float, float]


@dataclass(frozen=True)
class Problem:
    """Two objectives to minimize over a box.

    Attributes:
        evaluate: the objectives, and the excess over each constraint (0 or less is legal).
        reference: what the hypervolume is measured from.
        front: the published front, as many points of it.
    """

    name: str
    bounds: tuple[Point, ...]
    evaluate: Callable[[Sequence[float]], tuple[Point, tuple[float, ...]]]
    reference: Point
    front: tuple[Point, ...]


def zdt1(variables: int) -> Problem:
    def evaluate(x: Sequence[float]) -> tuple[Point, tuple[float, ...]]:
        g = 1.0 + 9.0 * sum(x[1:]) / (len(x) - 1)
        return (x[0], g * (1.0 - math.sqrt(x[0] / g))), ()

    front = tuple((i / 10_000, 1.0 - math.sqrt(i / 10_000)) for i in range(10_001))
    return Problem(f"ZDT1, {variables} variables", ((0.0, 1.0),) * variables, evaluate, (1.1, 6.0), front)


def bnh() -> Problem:
    def evaluate(point: Sequence[float]) -> tuple[Point, tuple[float, ...]]:
        x, y = point
        excesses = (((x - 5) ** 2 + y**2) / 25 - 1, 1 - ((x - 8) ** 2 + (y + 3) ** 2) / 7.7)
        return (4 * x**2 + 4 * y**2, (x - 5) ** 2 + (y - 5) ** 2), excesses

    best = [(5 * i / 10_000, min(5 * i / 10_000, 3.0)) for i in range(10_001)]
    front = tuple(evaluate(point)[0] for point in best)
    return Problem("BNH, 2 constraints", ((0.0, 5.0), (0.0, 3.0)), evaluate, (140.0, 50.0), front)


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """The area that the points dominate, up to the reference point; both objectives are minimized."""
    area, lowest = 0.0, reference[1]
    for first, second in sorted(points):
        if first < reference[0] and second < lowest:
            area += (reference[0] - first) * (lowest - second)
            lowest = second
    return area


def by_thresher(problem: Problem, algorithm: str, trials: int, seed: int, folder: Path) -> list[Point]:
    """The legal points that the study's trials reach."""
    spec = JobSpec.parse(
        {
            "name": "fronts",
            "data": {"source": {"kind": "builtin", "name": "diabetes"}},
            "model": {"name": "benchmarks.fronts:front"},
            "train": {"loss": "mse"},
            "search": {
                "trials": trials,
                "algorithm": algorithm,
                "seed": seed,
                "mode": "joint",
                "space": {f"model.args.x{i}": {"uniform": bounds} for i, bounds in enumerate(problem.bounds)},
                "objectives": {"bytes": "min"},
            },
        }
    )
    study, found = Study(spec, "joint", folder), []
    while (asked := study.ask()) is not None:
        if asked.repeated is not None:
            continue
        (first, second), excesses = problem.evaluate(list(asked.params.values()))
        violation = max(excesses, default=-1.0)
        values = {"metric": first, "bytes": second}
        study.tell(
            Trial(
                number=asked.number,
                phase="joint",
                params=asked.params,
                state="completed",
                values=values,
                violation=violation,
                seconds=0.0,
            )
        )
        if violation <= 0.0:
            found.append((first, second))
    return found


def by_optuna(problem: Problem, algorithm: str, trials: int, seed: int, *, anew: bool = False) -> list[Point]:
    """The legal points of Optuna's own loop with the same sampler.

    Args:
        anew: a sampler for each trial, seeded as Thresher's, and one constraint, the larger excess: what is left of a
            difference then is the study's doing.
    """
    samplers: dict[str, Callable[[int], BaseSampler]] = {
        "random": lambda seed: RandomSampler(seed=seed),
        "tpe": lambda seed: TPESampler(seed=seed, multivariate=True),
        "gp": lambda seed: GPSampler(seed=seed),
        "nsga2": lambda seed: NSGAIISampler(seed=seed, population_size=max(4, min(50, trials // 5))),
        "qmc": lambda seed: QMCSampler(seed=seed, scramble=True),
    }
    make = samplers[algorithm]
    found: list[Point] = []
    study = optuna.create_study(directions=["minimize"] * 2, sampler=make(seed))
    for place in range(trials):
        if anew:
            study.sampler = make(seed_of(seed, place))
        trial = study.ask()
        x = [trial.suggest_float(f"x{i}", low, high) for i, (low, high) in enumerate(problem.bounds)]
        values, excesses = problem.evaluate(x)
        for name, excess in enumerate((max(excesses, default=-1.0),) if anew else excesses):
            trial.set_constraint(str(name), excess)
        if all(excess <= 0.0 for excess in excesses):
            found.append(values)
        study.tell(trial, values)
    return found


def compare(problem: Problem, algorithm: str, trials: int, seeds: Sequence[int]) -> dict[str, Any]:
    """Mean hypervolumes over the seeds, as shares of the published front's.

    The ratio's error is the standard error of a ratio of two independent means (delta method): the two sides draw
    different numbers even under one seed. `identical`: whether every point is that of Optuna's loop with Thresher's
    seeds; None for qmc, whose sequence is not Optuna's.
    """
    whole = hypervolume(problem.front, problem.reference)
    shares: dict[str, list[float]] = {"thresher": [], "optuna": []}
    seconds = dict.fromkeys(shares, 0.0)
    identical = None if algorithm == "qmc" else True
    for seed in seeds:
        for side, found in shares.items():
            started = time.perf_counter()
            if side == "thresher":
                with tempfile.TemporaryDirectory() as folder:
                    points = by_thresher(problem, algorithm, trials, seed, Path(folder))
            else:
                points = by_optuna(problem, algorithm, trials, seed)
            seconds[side] += time.perf_counter() - started
            found.append(hypervolume(points, problem.reference) / whole)
            if side == "thresher" and identical:
                same = by_optuna(problem, algorithm, trials, seed, anew=True)
                identical = points == list(dict.fromkeys(same))  # the study does not run the same values twice
    means = {side: statistics.mean(found) for side, found in shares.items()}
    spread = {side: statistics.stdev(found) if len(found) > 1 else 0.0 for side, found in shares.items()}
    ratio = means["thresher"] / means["optuna"]
    relative = math.hypot(*(spread[side] / means[side] for side in shares)) / math.sqrt(len(seeds))
    return {
        "problem": problem.name,
        "algorithm": algorithm,
        "trials": trials,
        "seeds": len(seeds),
        **means,
        "ratio": ratio,
        "ratio_error": ratio * relative,
        "identical": identical,
        "spread": spread,
        "ms_per_trial": {side: 1000.0 * s / (len(seeds) * trials) for side, s in seconds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--variables", type=int, default=5, help="of ZDT1")
    parser.add_argument("--algorithms", default="tpe,nsga2,qmc,random")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    results = [
        compare(problem, algorithm, arguments.trials, range(arguments.seeds))
        for problem in (zdt1(arguments.variables), bnh())
        for algorithm in arguments.algorithms.split(",")
    ]
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    table = Table(title=f"hypervolume, share of the published front's; {arguments.trials} trials")
    for column in ("problem", "algorithm", "Thresher", "Optuna", "ratio", "same seeds", "ms a trial"):
        table.add_column(column, justify="left" if column in ("problem", "algorithm") else "right")
    for result in results:
        spread, ms = result["spread"], result["ms_per_trial"]
        table.add_row(
            result["problem"],
            result["algorithm"],
            *(f"{result[side]:.3f} ± {spread[side]:.3f}" for side in ("thresher", "optuna")),
            f"{result['ratio']:.3f} ± {result['ratio_error']:.3f}",
            {None: "", True: "identical", False: "different"}[result["identical"]],
            f"{ms['thresher']:.0f}, {ms['optuna']:.0f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
