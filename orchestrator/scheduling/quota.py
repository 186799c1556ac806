"""Nominal quota, borrowing and lending, for all projects at once.

The rules are those of Kueue's cohorts with one level: a project keeps `local = max(0, nominal − lending limit)` for
itself and lends the rest to its pool; it may use what is left of its own and what the pool has left, the latter capped
by its borrowing limit. What is available may be negative, after a quota was made smaller.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from orchestrator.scheduling.records import Project, Resources

Amounts = NDArray[np.int64]

Needs = tuple[tuple[int, int], ...]
"""(column, amount) of what a gang asks for, all its workers together; nothing that is zero."""

UNLIMITED = 1 << 60


class Quotas:
    """The projects' quotas, by project and resource. Never changes.

    >>> from orchestrator.scheduling.records import Quota
    >>> a = Project("a", Quota({"CPU": 10_000}, borrowing_limit={"CPU": 5_000}))
    >>> b = Project("b", Quota({"CPU": 10_000}, lending_limit={"CPU": 8_000}))
    >>> quotas = Quotas([a, b], ["CPU"])
    >>> usage = np.array([[7_000], [1_000]])
    >>> quotas.available(0, usage), quotas.available(1, usage)
    ([8000], [12000])
    """

    def __init__(self, projects: Sequence[Project], names: Sequence[str]) -> None:
        def table(of: Sequence[Resources | None], missing: int) -> list[list[int]]:
            return [[missing if one is None else one.get(name, missing) for name in names] for one in of]

        quotas = [project.quota for project in projects]
        nominal = table([quota.nominal if quota else None for quota in quotas], -1)
        lending = table([quota.lending_limit if quota else None for quota in quotas], UNLIMITED)
        self.projects = tuple(projects)
        self.owns_nothing = [quota is None for quota in quotas]
        self.governed = [[amount >= 0 for amount in row] for row in nominal]
        self.nominal = [[max(0, amount) for amount in row] for row in nominal]
        self.borrowing = table([quota.borrowing_limit if quota else None for quota in quotas], UNLIMITED)
        self.local = [
            [max(0, n - limit) for n, limit in zip(*rows, strict=True)]
            for rows in zip(self.nominal, lending, strict=True)
        ]
        self.own = table([quota.nominal if quota else dict.fromkeys(names, -1) for quota in quotas], UNLIMITED)
        """Up to where a project borrows nothing, by resource."""
        self.pool = [project.pool for project in projects]
        self._members = {
            pool: [index for index, project in enumerate(projects) if project.pool == pool] for pool in set(self.pool)
        }

    def available(self, project: int, usage: Amounts) -> list[int]:
        """How much more the project may use, by resource, when all projects use `usage` (projects, resources)."""
        members = self._members[self.pool[project]]
        used = dict(zip(members, usage[members].tolist(), strict=True))
        return [self._available(project, column, used) for column in range(usage.shape[1])]

    def _available(self, project: int, column: int, used: Mapping[int, Sequence[int]]) -> int:
        if not self.governed[project][column]:
            return UNLIMITED
        pool_left = 0
        for member, use in used.items():
            if self.governed[member][column]:
                local = self.local[member][column]
                pool_left += self.nominal[member][column] - local - max(0, use[column] - local)
        local, own_use = self.local[project][column], used[project][column]
        cap = self.nominal[project][column] - local - max(0, own_use - local) + self.borrowing[project][column]
        return max(0, local - own_use) + min(pool_left, cap)

    def within_nominal(self, project: int, needs: Needs, own_use: Sequence[int]) -> bool:
        """Whether the project borrows nothing of what the job asks for once it runs."""
        own = self.own[project]
        for column, need in needs:  # noqa: SIM110 - a third of the time, and asked for every line of a long queue
            if own_use[column] + need > own[column]:
                return False
        return True

    def how_many_within_nominal(self, project: int, needs: Needs, own_use: Sequence[int], most: int) -> int:
        """Of `most` gangs alike, how many the project may start without borrowing."""
        own = self.own[project]
        for column, need in needs:
            most = min(most, (own[column] - own_use[column]) // need)
        return max(0, most)

    def borrows(self, project: int, own_use: Sequence[int], needs: Needs) -> bool:
        """Whether it holds more than its own of a resource that is needed."""
        if self.owns_nothing[project]:
            return any(own_use[column] > 0 for column, _ in needs)
        governed, nominal = self.governed[project], self.nominal[project]
        return any(governed[column] and own_use[column] > nominal[column] for column, _ in needs)

    def share(self, project: int, own_use: Sequence[int], capacity: Sequence[int]) -> int:
        """Borrowed part of the cluster by weight, of the resource where it is largest; 0 when nothing is borrowed.

        Dominant resource fairness (Ghodsi et al., NSDI 2011), in billionths.
        """
        owns_nothing, weight = self.owns_nothing[project], self.projects[project].weight
        share = 0
        for use, nominal, governed, total in zip(
            own_use, self.nominal[project], self.governed[project], capacity, strict=True
        ):
            if total > 0 and (owns_nothing or governed):
                share = max(share, 10**9 * (use - nominal) // (weight * total))
        return share


def allows(needs: Needs, available: Sequence[int]) -> bool:
    """What a job does not ask for is not looked at: a project may be over its quota there."""
    for column, need in needs:  # noqa: SIM110 - as above
        if need > available[column]:
            return False
    return True
