"""Who leads. The lease row is locked, its epoch in the WHERE, by every transaction of the controller."""

from sqlalchemy import select, update

from orchestrator.store.database import Transaction
from orchestrator.store.errors import LeaseLost
from orchestrator.store.records import Lease
from orchestrator.store.tables import leases, settings

_NAME = "controller"
_IDENTITY = "cluster_identity"


def acquire(transaction: Transaction, holder: str, ttl_ms: int) -> Lease | None:
    """The lease, with a new epoch, if nobody else holds it now.

    Who holds it already gets it again, with a new epoch too: so the reply to a call that was lost does no harm.
    """
    row = transaction.connection.execute(select(leases).where(leases.c.name == _NAME).with_for_update()).one()
    if row.holder not in (None, holder) and row.expires_ms > transaction.now_ms:
        return None
    lease = Lease(holder, row.epoch + 1, ttl_ms, transaction.now_ms + ttl_ms)
    transaction.connection.execute(
        update(leases)
        .where(leases.c.name == _NAME)
        .values(holder=holder, epoch=lease.epoch, expires_ms=lease.expires_ms)
    )
    if row.holder != holder:
        transaction.event("leader", project=None, holder=holder, epoch=lease.epoch)
    return lease


def renew(transaction: Transaction, lease: Lease) -> Lease:
    """The same lease for longer. It may have expired, as long as nobody else took it."""
    renewed = Lease(lease.holder, lease.epoch, lease.ttl_ms, transaction.now_ms + lease.ttl_ms)
    changed = transaction.connection.execute(
        update(leases)
        .where(leases.c.name == _NAME, leases.c.epoch == lease.epoch, leases.c.holder == lease.holder)
        .values(expires_ms=renewed.expires_ms)
    )
    if changed.rowcount != 1:
        raise _lost(lease)
    return renewed


def release(transaction: Transaction, lease: Lease) -> None:
    """Lets the next one in at once. Nothing to do for who lost it."""
    transaction.connection.execute(
        update(leases)
        .where(leases.c.name == _NAME, leases.c.epoch == lease.epoch, leases.c.holder == lease.holder)
        .values(holder=None, expires_ms=0)
    )


def fence(transaction: Transaction, lease: Lease) -> None:
    """Raises LeaseLost, unless `lease` is the newest; until the commit nobody can take it then.

    Its time may be up: as long as there is no newer epoch nobody else has written.
    """
    held = transaction.connection.execute(
        select(leases.c.epoch)
        .where(leases.c.name == _NAME, leases.c.epoch == lease.epoch, leases.c.holder == lease.holder)
        .with_for_update()
    ).first()
    if held is None:
        raise _lost(lease)


def set_identity(transaction: Transaction, identity: str) -> None:
    connection = transaction.connection
    changed = connection.execute(update(settings).where(settings.c.name == _IDENTITY).values(value=identity))
    if not changed.rowcount:
        connection.execute(settings.insert().values(name=_IDENTITY, value=identity))


def _lost(lease: Lease) -> LeaseLost:
    return LeaseLost(f"{lease.holder} is no longer the leader: its epoch {lease.epoch} is over")
