"""The store: what was asked for, what is known of it, and who may do what; durable before it is acknowledged."""

from orchestrator.store.errors import Conflict, LeaseLost, NotFound, StoreUnavailable, StoreUnusable
from orchestrator.store.records import (
    Action,
    AttemptRecord,
    EventRecord,
    JobFilter,
    JobRecord,
    Lease,
    Leaving,
    ModelRecord,
    NewJob,
    NewModel,
    Page,
    Reason,
    Role,
    TokenRecord,
)
from orchestrator.store.states import AttemptState, JobState
from orchestrator.store.store import Store
from orchestrator.store.submitting import new_job_id

__all__ = [
    "Action",
    "AttemptRecord",
    "AttemptState",
    "Conflict",
    "EventRecord",
    "JobFilter",
    "JobRecord",
    "JobState",
    "Lease",
    "LeaseLost",
    "Leaving",
    "ModelRecord",
    "NewJob",
    "NewModel",
    "NotFound",
    "Page",
    "Reason",
    "Role",
    "Store",
    "StoreUnavailable",
    "StoreUnusable",
    "TokenRecord",
    "new_job_id",
]
