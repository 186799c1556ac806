"""Where the bundles of a gang go. Fit is tested node by node: free resources on two nodes are not one place."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Amounts = NDArray[np.int64]


@dataclass(frozen=True)
class Bundle:
    """One worker's demand as columns of the resource arrays."""

    columns: NDArray[np.int64]
    amounts: Amounts
    vector: Amounts
    """(resources,)"""

    @cached_property
    def key(self) -> bytes:
        """The same for equal bundles."""
        return self.vector.tobytes()

    @cached_property
    def kinds(self) -> bytes:
        """The same for bundles that ask for the same resources."""
        return (self.vector > 0).tobytes()


def capacities(bundle: Bundle, free: Amounts) -> NDArray[np.int64]:
    """How many such bundles each node holds; `free` is (nodes, resources) and may be negative.

    >>> two_cpu = Bundle(np.array([0]), np.array([2000]), np.array([2000, 0]))
    >>> capacities(two_cpu, np.array([[3000, 0], [4000, 1000], [-1000, 0]])).tolist()
    [1, 2, 0]
    """
    held: NDArray[np.int64] = (free[:, bundle.columns] // bundle.amounts).min(axis=1)
    return np.maximum(held, 0, out=held)


def place(workers: int, capacity: NDArray[np.int64], unwanted: NDArray[np.int64]) -> list[tuple[int, int]]:
    """(node, bundles) of a gang that fits: few nodes, the fullest that will do, and none with idle devices it lacks.

    The workers of a gang talk to each other, so they are packed; a job without GPUs stays off the nodes with GPUs
    (`unwanted`: how many kinds of resources a node has that the job does not ask for) as long as it fits elsewhere.

    >>> place(3, np.array([4, 3, 8]), np.array([0, 0, 0]))
    [(1, 3)]
    >>> place(10, np.array([4, 3, 8]), np.array([0, 0, 0]))
    [(2, 8), (1, 2)]
    >>> place(3, np.array([4, 3, 8]), np.array([0, 1, 0]))
    [(0, 3)]
    """
    for level in np.unique(unwanted[capacity > 0]):
        usable = np.where(unwanted <= level, capacity, 0)
        if usable.sum() >= workers:
            break
    else:
        raise ValueError(f"{workers} workers do not fit: {capacity.sum()} would")
    chosen: list[tuple[int, int]] = []
    left = workers
    # Largest nodes first; the last part goes where it fills most. Stable sorting keeps ties in the order of names.
    order = np.argsort(-usable, kind="stable")
    for node in order:
        if usable[node] >= left:
            break
        chosen.append((int(node), int(usable[node])))
        left -= int(usable[node])
    if left:
        enough = usable >= left
        enough[[node for node, _ in chosen]] = False
        candidates = np.flatnonzero(enough)
        chosen.append((int(candidates[np.argmin(usable[candidates])]), left))
    return chosen
