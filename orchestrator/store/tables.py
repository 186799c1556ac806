"""The tables, as the newest migration leaves them. A change here needs a migration: a test compares the two."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

Json = JSON(none_as_null=True)

leases = Table(
    "leases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("holder", Text),
    Column("epoch", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
)

# One row a counter: who counts one up holds its row until the commit, so that numbers are in the order of commits.
counters = Table(
    "counters",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", BigInteger, nullable=False),
)

settings = Table(
    "settings",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

projects = Table(
    "projects",
    metadata,
    Column("name", Text, primary_key=True),
    Column("quota", Json),
    Column("pool", Text, nullable=False),
    Column("weight", Integer, nullable=False),
    Column("preempt_within", Text, nullable=False),
    Column("reclaim", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", Text, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("project", Text),
    Column("role", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger),
    Column("revoked_ms", BigInteger),
    CheckConstraint("role IN ('viewer', 'submitter', 'admin')", name="role"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("spec", Json, nullable=False),
    Column("spec_hash", Text, nullable=False),
    Column("demand", Json, nullable=False),
    Column("limit_ms", BigInteger),
    Column("state", Text, nullable=False),
    Column("unreachable_since_ms", BigInteger),
    Column("reason", Text, nullable=False, default=""),
    Column("reserved_ms", BigInteger),
    Column("behind", Text),
    Column("submitted_ms", BigInteger, nullable=False),
    Column("not_before_ms", BigInteger, nullable=False, default=0),
    Column("started_ms", BigInteger),
    Column("ended_ms", BigInteger),
    Column("cause", Text),
    Column("detail", Text),
    Column("run_id", Text, nullable=False),
    Column("run_dir", Text),
    Column("has_code", Boolean, nullable=False),
    Column("resumes", Text, ForeignKey("jobs.id")),
    Column("submitted_by", Text),
    Column("cancel_requested_by", Text),
    Column("claim", Json),
    Column("failures", Json, nullable=False),
    Column("num_attempts", Integer, nullable=False, default=0),
    Column("idempotency_key", Text),
    Column("body_digest", Text, nullable=False),
    UniqueConstraint("project", "idempotency_key"),
    CheckConstraint(
        "(ended_ms IS NOT NULL) = (state IN ('SUCCEEDED', 'FAILED', 'CANCELLED'))", name="terminal_has_end"
    ),
)
# Pages, newest first. For each filter there is an index that has its rows in the page's order.
Index(None, jobs.c.submitted_ms, jobs.c.id)
Index(None, jobs.c.project, jobs.c.submitted_ms, jobs.c.id)
Index(None, jobs.c.state, jobs.c.submitted_ms, jobs.c.id)
Index(None, jobs.c.project, jobs.c.state, jobs.c.submitted_ms, jobs.c.id)
Index(None, jobs.c.name, jobs.c.submitted_ms, jobs.c.id, jobs.c.project, jobs.c.state)
# Two live jobs never share a run directory.
_LIVE = text("ended_ms IS NULL")
Index("uq_jobs_live_run", jobs.c.run_id, unique=True, sqlite_where=_LIVE, postgresql_where=_LIVE)

attempts = Table(
    "attempts",
    metadata,
    Column("submission_id", Text, primary_key=True),
    Column("job_id", Text, ForeignKey("jobs.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("placement", Json, nullable=False),
    Column("run_dir", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("planned_ms", BigInteger, nullable=False),
    Column("submitted_ms", BigInteger),
    Column("alive_ms", BigInteger),
    Column("ended_ms", BigInteger),
    Column("leaving_since_ms", BigInteger),
    Column("leaving_why", Text),
    Column("outcome", Text),
    Column("cause", Text),
    Column("detail", Text),
    Column("cluster_id", Text),
    UniqueConstraint("job_id", "number"),
)
# At most one live attempt a job, whoever writes.
_HELD = text("state IN ('PLANNED', 'SUBMITTED', 'ALIVE')")
Index("uq_attempts_live_job", attempts.c.job_id, unique=True, sqlite_where=_HELD, postgresql_where=_HELD)

events = Table(
    "events",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("project", Text),
    Column("job_id", Text),
    Column("data", Json, nullable=False),
    Index(None, "job_id", "seq"),
    Index(None, "project", "seq"),
)

models = Table(
    "models",
    metadata,
    Column("project", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("job_id", Text, ForeignKey("jobs.id"), nullable=False),
    Column("artifact", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("spec_hash", Text, nullable=False),
    Column("data_fingerprint", Text),
    Column("lineage", Json, nullable=False),
    Column("measurement", Json, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    UniqueConstraint("job_id", "artifact"),
)

aliases = Table(
    "model_aliases",
    metadata,
    Column("project", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("alias", Text, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("updated_ms", BigInteger, nullable=False),
    ForeignKeyConstraint(["project", "name", "version"], ["models.project", "models.name", "models.version"]),
)
