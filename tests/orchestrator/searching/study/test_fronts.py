"""The study, asked and told through its files, comes as near to known fronts as Optuna's own loop."""

from pathlib import Path

import pytest

from benchmarks.fronts import bnh, by_optuna, by_thresher, compare, hypervolume, zdt1


def test_the_hypervolume_of_a_staircase():
    assert hypervolume([(1.0, 3.0), (2.0, 2.0), (3.0, 3.0), (9.0, 0.0)], (4.0, 4.0)) == 3 * 1 + 2 * 1
    assert hypervolume([], (1.0, 1.0)) == 0.0


def test_the_published_fronts_are_what_nothing_dominates():
    """Two thirds of the unit square lie behind ZDT1's; no legal point of a fine grid lies before BNH's."""
    problem = zdt1(5)
    assert hypervolume(problem.front, (1.0, 1.0)) == pytest.approx(1 - 1 / 3, abs=1e-3)
    assert problem.evaluate([0.25, 0.0, 0.0, 0.0, 0.0])[0] == (0.25, 0.5)
    two = bnh()
    whole = hypervolume(two.front, two.reference)
    grid = [two.evaluate((5 * i / 100, 3 * j / 100)) for i in range(101) for j in range(101)]
    legal = [values for values, excesses in grid if max(excesses) <= 0]
    assert len(legal) < len(grid)
    assert 0.99 * whole < hypervolume(legal, two.reference) <= whole * 1.0001


@pytest.mark.parametrize("algorithm", ["tpe", "qmc"])
def test_as_near_as_optunas_own_loop(algorithm: str):
    """On BNH, where two seeds are enough to tell; the benchmark has the other ones, with more trials and seeds."""
    result = compare(bnh(), algorithm, trials=60, seeds=range(2))
    assert result["ratio"] > 0.98
    assert 0.9 < result["thresher"] < 1.0
    assert result["identical"] == (None if algorithm == "qmc" else True)


@pytest.mark.parametrize("algorithm", ["tpe", "nsga2"])
def test_one_at_a_time_it_draws_what_optunas_own_loop_draws_with_the_same_seeds(algorithm: str, tmp_path: Path):
    problem = zdt1(3)
    points = by_thresher(problem, algorithm, 30, 1, tmp_path)
    assert len(points) > 20  # values that were there are not run again
    assert points == list(dict.fromkeys(by_optuna(problem, algorithm, 30, 1, anew=True)))
    assert points != list(dict.fromkeys(by_optuna(problem, algorithm, 30, 1)))


def test_what_learns_comes_nearer_than_chance(tmp_path: Path):
    problem = zdt1(5)
    chance, learnt = (
        hypervolume(by_thresher(problem, name, 60, 2, tmp_path / name), problem.reference) for name in ("random", "tpe")
    )
    assert learnt > 1.05 * chance
