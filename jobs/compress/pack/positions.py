"""Where the values of a sparse tensor lie, by the range coder.

A plain bitmap costs the entropy of its density. But in a pruned layer some inputs and some outputs keep far more
weights than others. So a place is coded by what was seen of its line and of its column: each combination of the two has
a chance of its own.
"""

from jobs.compress.pack.coder import ONE, Chance, Coder

_FEW = 3
"""Values seen before at the same place of a row; more are as many."""
_AGES = (4, 16, 64)
"""Rows seen: what a count means depends on them."""


def code_positions(coder: Coder, mask: list[int] | None, rows: int, columns: int, transposed: bool) -> list[int]:
    """Writes or reads which places of a grid hold a value; returns them, in the order in which they were coded.

    Args:
        mask: 0 or 1 for each of rows × columns places, rows first; None to read.
        transposed: column by column.
    """
    lines, places = (columns, rows) if transposed else (rows, columns)
    line_step, place_step = (1, columns) if transposed else (columns, 1)
    overall = Chance(ONE // 16)
    chances: dict[int, Chance] = {}
    before = [0] * places
    found = []
    for line in range(lines):
        age = sum(line >= limit for limit in _AGES)
        count, position = 0, line * line_step
        for place in range(places):
            density = min(3, 64 * count // (place + 32))
            context = (before[place] * 4 + age) * 4 + density
            chance = chances.get(context)
            if chance is None:
                chance = chances[context] = Chance(overall.ones, 2)
            bit = coder.bit(chance, mask[position] if mask is not None else 0)
            overall.learn(bit)
            if bit:
                found.append(position)
                count += 1
                if before[place] < _FEW:
                    before[place] += 1
            position += place_step
    return found
