"""What of a space is tried before a search begins: all of a small one, an even part of a large one."""

from itertools import product

from jobs.spec.dimension import Dimension
from jobs.spec.space import MAX_PAIRED, MAX_SETTINGS, Grid, pairs, probes, settings

LONG = Dimension(choice=tuple(range(1000)))


def test_of_long_choices_an_even_part_is_tried_beside_one_another():
    found = list(pairs({"a": LONG, "b": LONG}, "a"))
    assert len(found) == MAX_PAIRED**2
    assert {(0, 0), (0, 999), (999, 0), (999, 999)} <= {(each["a"], each["b"]) for each in found}
    assert len(list(probes({"a": LONG}, "a"))) == 1000, "each is tried by itself"


def test_of_short_ones_everything_is():
    space = {"a": Dimension(choice=(1, 2, 3)), "b": Dimension(choice=("x", "y"))}
    found = [(each["a"], each["b"]) for each in pairs(space, "a")]
    assert sorted(found) == sorted(product((1, 2, 3), "xy"))


def test_of_many_conditions_an_even_part_is_tried():
    parents = {f"p{n}": Dimension(choice=tuple(range(10))) for n in range(12)}
    space = {**parents, "a": Dimension(uniform=(0.0, 1.0), when=dict.fromkeys(parents, (1, 2, 3)))}
    found = list(settings(space, "a"))
    assert len(found) == MAX_SETTINGS
    assert all(set(each.values()) <= {1, 2, 3} and list(each) == list(parents) for each in found)
    assert [set(found[0].values()), set(found[-1].values())] == [{1}, {3}]
    assert len({tuple(each.values()) for each in found}) == MAX_SETTINGS
    assert Grid(space).combinations == 10**12
