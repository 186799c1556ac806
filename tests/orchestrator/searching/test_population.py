"""Population-based training: what a generation decides, and that it decides the same after a break."""

import json
import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from jobs.records import Segment, Trial
from jobs.spec import JobSpec
from jobs.spec.dimension import Dimension
from jobs.spec.search import Pbt
from orchestrator.searching.asker import POPULATION, PopulationAsker
from orchestrator.searching.population import Standing, explored, generation_ends, next_generation
from orchestrator.searching.study import Study

LR = "train.optimizer.lr"
SPACE = {LR: Dimension(loguniform=(1e-4, 1e-1)), "model.args.dropout": Dimension(uniform=(0.1, 0.5), step=0.1)}


def standings(*scores: float | None) -> list[Standing]:
    return [
        Standing(number, {LR: 10.0 ** -(1 + number % 4), "model.args.dropout": 0.3}, score)
        for number, score in enumerate(scores)
    ]


def moves(*scores: float | None, pbt: Pbt | None = None, direction: Any = "max", generation: int = 0) -> dict[int, Any]:
    return next_generation(standings(*scores), SPACE, pbt or Pbt(), direction=direction, seed=3, generation=generation)


def test_generations_end_at_evaluations_and_with_the_training():
    assert generation_ends([5, 10, 15, 20], 2) == [10, 20]
    assert generation_ends([5, 10, 15], 2) == [10, 15]
    assert generation_ends([7], 3) == [7]


def test_the_bottom_quantile_takes_over_the_top():
    found = moves(0.9, 0.1, 0.5, 0.2, 0.8, 0.6, 0.7, 0.3)
    sources = {number: move.source for number, move in found.items()}
    assert {number for number, source in sources.items() if number != source} == {1, 3}
    assert {sources[1], sources[3]} <= {0, 4}
    for number, standing in enumerate(standings(*[0.0] * 8)):
        if sources[number] == number:
            assert found[number].params == standing.params, "who stays goes on as before"
    lower = moves(0.9, 0.1, 0.5, 0.2, 0.8, 0.6, 0.7, 0.3, direction="min")
    assert {number for number, move in lower.items() if number != move.source} == {0, 4}


def test_who_failed_takes_over_whatever_the_quantile():
    found = moves(None, math.nan, 0.5, None, 0.4, None)
    assert {number for number, move in found.items() if number != move.source} == {0, 1, 3, 5}
    assert {move.source for move in found.values()} == {2, 4}
    with pytest.raises(ValueError, match="no member"):
        moves(None, math.nan)


def test_it_depends_on_the_seed_and_the_generation_and_not_on_the_order():
    scores = [0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.6]
    shuffled = standings(*scores)
    random.Random(0).shuffle(shuffled)
    again = next_generation(shuffled, SPACE, Pbt(), direction="max", seed=3, generation=0)
    assert again == moves(*scores)
    assert moves(*scores, generation=1) != moves(*scores)


def test_values_stay_within_bounds_and_on_their_steps():
    draw = random.Random(0)
    space = {
        LR: SPACE[LR],
        "step": Dimension(uniform=(0.1, 0.5), step=0.1),
        "whole": Dimension(int=(1, 9)),
        "choice": Dimension(choice=("a", "b", "c")),
    }
    params: dict[str, Any] = {LR: 0.1, "step": 0.5, "whole": 1, "choice": "a"}
    seen = []
    for _ in range(300):
        params = explored(params, space, Pbt(factor=2.0), draw)
        assert 1e-4 <= params[LR] <= 1e-1
        assert params["step"] in (0.1, 0.2, 0.3, 0.4, 0.5)
        assert params["whole"] in range(1, 10)
        seen.append(tuple(params.values()))
    assert len({values[1] for values in seen}) == 4 or len(set(seen)) > 200
    assert {one["choice"] for one in (explored(params, space, Pbt(), draw) for _ in range(60))} >= {"a", "b"}


def test_a_value_moves_by_the_factor_unless_it_is_drawn_anew():
    draw = random.Random(1)
    found = {round(explored({LR: 0.01}, SPACE, Pbt(resample=0.0, factor=1.25), draw)[LR], 6) for _ in range(40)}
    assert found == {0.0125, 0.008}
    anew = [explored({LR: 0.01}, SPACE, Pbt(resample=1.0), draw)[LR] for _ in range(200)]
    assert sum(value < 10**-2.5 for value in anew) == pytest.approx(100, abs=25)


@dataclass
class Task:
    """A search without trainings: the metric is a function of the rate, and of how far the training has come."""

    folder: Path
    phase: Any = "train"
    booked: list[Trial] = field(default_factory=list)
    base: JobSpec = field(
        default_factory=lambda: JobSpec.parse(
            {
                "name": "small",
                "data": {"source": {"kind": "builtin", "name": "digits"}},
                "model": {"name": "mlp"},
                "search": {
                    "trials": 6,
                    "algorithm": "random",
                    "scheduler": "pbt",
                    "space": {LR: {"loguniform": [1e-4, 1e-1]}},
                },
            }
        )
    )

    def on_trial(self, trial: Trial) -> None:
        self.booked.append(trial)

    def on_event(self, event: dict[str, Any]) -> None:
        pass

    def should_stop(self) -> bool:
        return False


STEPS = [10, 20, 30, 40]


def outcome(suggested: dict[str, Any]) -> Trial:
    """The record of a part; the third member's first part fails."""
    number, params, leg = suggested["number"], suggested["params"], suggested["leg"]
    before = tuple(Segment.from_json(part) for part in leg["before"])
    given: dict[str, Any] = {"number": number, "phase": "train", "params": params, "seconds": 1.0}
    if number == 2 and not before:
        return Trial(**given, state="failed", cause="diverged: nan", values={})
    stage = json.dumps([*[part.stage for part in before], params[LR]])
    here = Segment(member=number, params=params, until_step=leg["until_step"], stage=stage)
    metric = sum(-abs(math.log10(part.params[LR]) + 2.0) for part in (*before, here))
    return Trial(
        **given, state="completed", values={"metric": metric}, steps=leg["until_step"], lineage=(*before, here)
    )


def drive(folder: Path, *, parts: int = 10**9, seed: int = 0) -> PopulationAsker:
    """Runs at most so many parts, three at a time, which end in a random order."""
    task = Task(folder)
    asker = PopulationAsker(task, Study(task.base, "train", folder), STEPS)
    draw, running, started = random.Random(seed), dict[str, Any](), 0
    while True:
        suggested: Any = None
        if len(running) < 3:
            suggested = asker.suggest(f"t{started}")
        if suggested == Searcher.FINISHED and not running:
            break
        if isinstance(suggested, dict):
            running[f"t{started}"] = suggested
            started += 1
            continue
        assert running, "nobody runs, and nobody may begin"
        name = draw.choice(sorted(running))
        asker.on_trial_complete(name, {"record": json.dumps(outcome(running.pop(name)).to_json())})
        parts -= 1
        if parts == 0:
            return asker
    asker.conclude()
    return asker


def as_told(folder: Path) -> list[dict[str, Any]]:
    task = Task(folder)
    return [trial.to_json() for trial in Study(task.base, "train", folder).finished]


def test_a_search_comes_out_the_same_in_any_order_and_after_any_break(tmp_path: Path):
    whole = drive(tmp_path / "whole")
    expected = as_told(tmp_path / "whole")
    assert len(expected) == 6
    assert whole.left == 0
    assert all(trial["state"] == "completed" and len(trial["lineage"]) == len(STEPS) for trial in expected)
    assert any({part["member"] for part in trial["lineage"]} - {trial["number"]} for trial in expected)
    assert {trial["seconds"] for trial in expected} == {4.0}
    drive(tmp_path / "other", seed=1)
    assert as_told(tmp_path / "other") == expected
    for parts in (1, 5, 6, 7, 17, 23):
        folder = tmp_path / f"broken-{parts}"
        drive(folder, parts=parts)
        with (folder / POPULATION).open("a") as file:
            file.write('{"generation": 1, "tri')  # a line that was being written
        resumed = drive(folder, seed=2)
        assert as_told(folder) == expected
        lines = (folder / POPULATION).read_text().splitlines()
        assert len(lines) == len(STEPS) * 6, "a part was booked twice, or lost"
        assert len({(json.loads(line)["generation"], json.loads(line)["trial"]["number"]) for line in lines}) == 24
        assert resumed.left == 0


def test_a_population_broken_off_while_it_was_told_is_told_to_the_end(tmp_path: Path):
    expected_folder, folder = tmp_path / "whole", tmp_path / "half"
    drive(expected_folder)
    asker = drive(folder, parts=24)
    asker.study.tell(asker.done[0].model_copy(update={"seconds": 4.0}))
    drive(folder)
    assert as_told(folder) == as_told(expected_folder)


def test_lineage_is_a_user_attribute_of_the_study(tmp_path: Path):
    asker = drive(tmp_path)
    frozen = asker.study._study.get_trials()[0]
    assert [part["until_step"] for part in frozen.user_attrs["lineage"]] == STEPS


def test_when_every_member_fails_the_search_ends(tmp_path: Path):
    task = Task(tmp_path)
    asker = PopulationAsker(task, Study(task.base, "train", tmp_path), STEPS)
    names = [f"t{number}" for number in range(6)]
    suggested: list[Any] = [asker.suggest(name) for name in names]
    assert asker.suggest("t6") is None
    for name, part in zip(names, suggested, strict=True):
        failed = Trial(
            number=part["number"],
            phase="train",
            params={},
            state="failed",
            cause="diverged: nan",
            values={},
            seconds=1.0,
        )
        asker.on_trial_complete(name, {"record": json.dumps(failed.to_json())})
    assert asker.suggest("t6") == Searcher.FINISHED
    asker.conclude()
    assert [trial.state for trial in task.booked] == ["failed"] * 6
