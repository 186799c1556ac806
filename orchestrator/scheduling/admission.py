"""What can never start is refused when it is submitted, with the numbers."""

import numpy as np

from orchestrator.scheduling.books import Books
from orchestrator.scheduling.ledger import Ask
from orchestrator.scheduling.quota import allows
from orchestrator.scheduling.reasons import amounts_text, gang_text
from orchestrator.scheduling.records import Job, Pending, Snapshot


def refusal(job: Job, snapshot: Snapshot) -> str | None:
    """Why this job could not start on the idle cluster, grown as far as it can be; None when it could.

    >>> from orchestrator.scheduling.records import Demand, Node
    >>> two_nodes = Snapshot(0, (Node("a", {"CPU": 4000}), Node("b", {"CPU": 2000})))
    >>> refusal(Job("1", "p", Demand.of(3, CPU=2), 0, 0), two_nodes)
    >>> refusal(Job("1", "p", Demand.of(2, CPU=3), 0, 0), two_nodes)
    '2 × 3 CPU can never start here: the idle cluster has room for 1 (largest node: 4 CPU)'
    """
    waiting = {pending.job.id for pending in snapshot.pending}
    if job.id in waiting:
        return infeasible(job, Books(snapshot), ever=True)
    asked = Snapshot(snapshot.now_ms, snapshot.nodes, (), (Pending(job),), snapshot.projects, growth=snapshot.growth)
    return infeasible(job, Books(asked), ever=True)


def fits_idle(ask: Ask, books: Books, ever: bool) -> bool:
    """Whether it would start were all else gone."""
    return ask.workers <= books.idle_room(ask.bundle, ever) and allows(ask.needs, books.most(ask.project))


def infeasible(job: Job, books: Books, ever: bool) -> str | None:
    """Why a job cannot start when all else is gone: `ever`, or with the nodes and quotas of now."""
    ask = books.ask(job)
    if ask is not None and fits_idle(ask, books, ever):
        return None
    never = "can never start here" if ever else "cannot start at present"
    if ask is None:
        unknown = [name for name, _ in job.demand.bundle if name not in books.column_of]
        return f"{gang_text(job.demand)} {never}: no node has any {' or '.join(unknown)}"
    room = books.idle_room(ask.bundle, ever)
    if room < ask.workers:
        nodes = books.largest if ever else books.totals
        largest = nodes.max(axis=0) if len(nodes) else np.zeros(len(books.names), np.int64)
        has = amounts_text({name: int(largest[books.column_of[name]]) for name, _ in job.demand.bundle}, zeros=True)
        return f"{gang_text(job.demand)} {never}: the idle cluster has room for {room} (largest node: {has})"
    most = books.most(ask.project)
    short = [(books.names[column], need, most[column]) for column, need in ask.needs if need > most[column]]
    needs = amounts_text({name: need for name, need, _ in short})
    limit = amounts_text({name: amount for name, _, amount in short}, zeros=True)
    return f"{needs} {never}: project {job.project} may use at most {limit}, borrowing included"
