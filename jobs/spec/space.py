"""What holds of several dimensions together: conditions, the points of a grid, what must be legal. Pure functions."""

import difflib
import math
from collections.abc import Iterator, Mapping
from functools import cached_property

from pydantic_core import PydanticCustomError

from jobs.section import illegal
from jobs.spec.dimension import Dimension, Value

Space = Mapping[str, Dimension]

MAX_SETTINGS = 64
"""Combinations of parents' values that a key is tried under; of more so many, evenly."""
MAX_PAIRED = 16
"""Values of two keys that are tried beside each other, of each; of more so many, evenly."""
MAX_COMBINATIONS = 10_000
"""Combinations of the values that others depend on, which a grid lists."""


def is_active(dimension: Dimension, values: Mapping[str, Value]) -> bool:
    """Whether a key is there beside these values; one whose parent is not there is not there either."""
    return all(parent in values and _among(values[parent], allowed) for parent, allowed in dimension.conditions.items())


def ordered(space: Space) -> list[str]:
    """The keys, parents before children, otherwise as they were written."""
    found: dict[str, None] = {}

    def add(key: str) -> None:
        for parent in space[key].conditions:
            add(parent)
        found.setdefault(key)

    for key in space:
        add(key)
    return list(found)


def is_conditional(space: Space) -> bool:
    return any(dimension.when for dimension in space.values())


def space_problem(space: Space) -> PydanticCustomError | None:
    """What is wrong with the conditions of a space, located relative to the search."""
    for key, dimension in space.items():
        for parent, allowed in dimension.conditions.items():
            if problem := _condition_problem(space, key, parent, allowed):
                message, legal = problem
                return _at(key, message, legal)
    for key in space:
        if cycle := _cycle(space, key):
            return _at(key, f"depends on itself: {' → '.join(cycle)}", "conditions without a circle")
    for key in space:
        if not any(settings(space, key)) and space[key].when:
            return _at(key, "is never there: its conditions exclude one another", "conditions that can hold together")
    for key in space:
        for part in range(1, key.count(".") + 1):
            whole = key.rsplit(".", part)[0]
            if whole in space:
                message = f"{key} lies within {whole}, which is searched as a whole and would take its place"
                return illegal(message, f"{whole}.name for {whole}", at=f"space.{key}")
    return None


def _condition_problem(
    space: Space, key: str, parent: str, allowed: tuple[Value, ...]
) -> tuple[str, str | None] | None:
    if parent not in space:
        near = difflib.get_close_matches(parent, [k for k in space if k != key], n=1)
        return f"depends on {parent}, which is not searched", f"a choice of the space{_meant(near)}"
    choice = space[parent].choice
    if choice is None:
        return f"depends on {parent}, which is no choice", "a key that is searched as a choice"
    if not allowed:
        return f"is never there: no value of {parent} is named", ", ".join(map(str, choice))
    for value in allowed:
        if not _among(value, choice):
            names = [str(other) for other in choice]
            near = difflib.get_close_matches(str(value), names, n=1)
            return f"depends on {parent} = {value!r}, which it never takes", ", ".join(names) + _meant(near)
    return None


def _meant(near: list[str]) -> str:
    return f"; did you mean {near[0]!r}?" if near else ""


def _at(key: str, message: str, allowed: str | None) -> PydanticCustomError:
    return illegal(f"{key} {message}", allowed, at=f"space.{key}.when")


def _cycle(space: Space, start: str) -> list[str]:
    """The way from a key through its parents back to itself; empty where there is none."""
    stack = [(start, [start])]
    seen = set()
    while stack:
        key, way = stack.pop()
        for parent in space[key].conditions:
            if parent == start:
                return [*way, parent]
            if parent not in seen:
                seen.add(parent)
                stack.append((parent, [*way, parent]))
    return []


def _among(value: Value, values: tuple[Value, ...]) -> bool:
    """True is not 1 here, and 1 is not 1.0."""
    return any(type(value) is type(other) and value == other for other in values)


class Grid:
    """The points of a countable space, numbered: each combination of what is there together, once.

    >>> space = {"a": Dimension(choice=(1, 2)), "b": Dimension(choice=("x", "y"), when={"a": 2})}
    >>> grid = Grid(space)
    >>> [grid.point(index) for index in range(grid.size)]
    [{'a': 1}, {'a': 2, 'b': 'x'}, {'a': 2, 'b': 'y'}]
    """

    def __init__(self, space: Space) -> None:
        self.space = {key: space[key] for key in ordered(space)}

    @property
    def combinations(self) -> int:
        """Of the values that others depend on; at least as many as there are."""
        parents = {parent for dimension in self.space.values() for parent in dimension.conditions}
        return math.prod(self.space[parent].count or 0 for parent in parents)

    @cached_property
    def _blocks(self) -> tuple[tuple[dict[str, Value], tuple[str, ...], int], ...]:
        """The values that others depend on, in each combination; the other keys that are there, and their points."""
        parents = {parent for dimension in self.space.values() for parent in dimension.conditions}
        combinations: list[dict[str, Value]] = [{}]
        for key in (key for key in self.space if key in parents):
            dimension = self.space[key]
            combinations = [
                extended
                for values in combinations
                for extended in (
                    [values | {key: value} for value in dimension.grid or ()]
                    if is_active(dimension, values)
                    else [values]
                )
            ]
        blocks = []
        for values in combinations:
            others = tuple(k for k, dim in self.space.items() if k not in parents and is_active(dim, values))
            blocks.append((values, others, math.prod(self.space[key].count or 0 for key in others)))
        return tuple(blocks)

    @property
    def size(self) -> int:
        return sum(size for _, _, size in self._blocks)

    def point(self, index: int) -> dict[str, Value]:
        """The values at a number from 0 to `size` - 1, in the order of the space; the last key changes fastest."""
        for fixed, others, size in self._blocks:
            if index >= size:
                index -= size
                continue
            values = dict(fixed)
            for key in reversed(others):
                index, place = divmod(index, self.space[key].count or 1)
                values[key] = self.space[key].value(place)
            return {key: values[key] for key in self.space if key in values}
        raise IndexError(f"the grid has {self.size} points")


def settings(space: Space, key: str) -> Iterator[dict[str, Value]]:
    """The values of parents under which a key is there, in each combination; one empty setting without a condition.

    Of more than `MAX_SETTINGS` so many.

    >>> space = {"a": Dimension(choice=(1, 2, 3)), "b": Dimension(uniform=(0, 1), when={"a": (2, 3)})}
    >>> list(settings(space, "b"))
    [{'a': 2}, {'a': 3}]
    """
    needed: dict[str, tuple[Value, ...]] = {}

    def need(child: str) -> None:
        for parent, allowed in space[child].conditions.items():
            before = needed.get(parent, allowed)
            needed[parent] = tuple(value for value in before if _among(value, allowed))
            need(parent)

    need(key)
    count = math.prod(len(values) for values in needed.values())
    for index in _evenly(count, MAX_SETTINGS):
        setting = {}
        for parent in reversed(needed):
            index, place = divmod(index, len(needed[parent]))
            setting[parent] = needed[parent][place]
        yield {parent: setting[parent] for parent in needed}


def _evenly(count: int, most: int) -> list[int]:
    """The numbers below `count`, or `most` of them, the first and the last among them.

    >>> _evenly(3, 4), _evenly(10, 4)
    ([0, 1, 2], [0, 3, 6, 9])
    """
    if count <= most:
        return list(range(count))
    return [place * (count - 1) // (most - 1) for place in range(most)]


def probes(space: Space, key: str) -> Iterator[dict[str, Value]]:
    """Values of a key that must be legal, each with those of its parents; the key itself is among them."""
    for setting in settings(space, key):
        for value in space[key].probes:
            yield {**setting, key: value}


def pairs(space: Space, key: str) -> Iterator[dict[str, Value]]:
    """Values of a key with those of every choice that is there beside it: what trials will combine."""
    for other, dimension in space.items():
        if other == key or dimension.choice is None:
            continue
        every = list(probes(space, key))
        beside = [dimension.choice[place] for place in _evenly(len(dimension.choice), MAX_PAIRED)]
        for probe in (every[place] for place in _evenly(len(every), MAX_PAIRED)):
            for setting in settings(space, other):
                if any(parent in probe and probe[parent] != value for parent, value in setting.items()):
                    continue
                for value in beside:
                    together = {**setting, **probe, other: value}
                    if other not in probe and _stand_together(space, together):
                        yield together


def completed(space: Space, values: Mapping[str, Value]) -> dict[str, Value]:
    """The values with the first one of every choice that is there beside them: what else a trial would be made of."""
    found = dict(values)
    for key in ordered(space):
        choice = space[key].choice
        if choice is not None and key not in found and is_active(space[key], found):
            found[key] = choice[0]
    return found


def _stand_together(space: Space, values: Mapping[str, Value]) -> bool:
    return all(is_active(space[key], values) for key in values)
