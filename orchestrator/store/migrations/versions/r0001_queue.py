"""The queue: jobs, attempts, events, the lease, projects and tokens."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "leases",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("holder", sa.Text),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("expires_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
    )
    op.execute("INSERT INTO leases (name, holder, epoch, expires_ms) VALUES ('controller', NULL, 0, 0)")
    op.create_table(
        "counters",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("value", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_counters"),
    )
    op.execute("INSERT INTO counters (name, value) VALUES ('events', 0)")
    op.create_table(
        "settings",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_settings"),
    )
    _access()
    _jobs()
    _attempts()
    op.create_table(
        "events",
        sa.Column("seq", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("project", sa.Text),
        sa.Column("job_id", sa.Text),
        sa.Column("data", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_events"),
    )
    op.create_index("ix_events_job_id_seq", "events", ["job_id", "seq"])
    op.create_index("ix_events_project_seq", "events", ["project", "seq"])


def _access() -> None:
    op.create_table(
        "projects",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("quota", sa.JSON),
        sa.Column("pool", sa.Text, nullable=False),
        sa.Column("weight", sa.Integer, nullable=False),
        sa.Column("preempt_within", sa.Text, nullable=False),
        sa.Column("reclaim", sa.Text, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_projects"),
    )
    op.execute(
        "INSERT INTO projects (name, pool, weight, preempt_within, reclaim, created_ms) "
        "VALUES ('default', 'default', 1, 'lower_priority', 'any', 0)"
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("project", sa.Text),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("expires_ms", sa.BigInteger),
        sa.Column("revoked_ms", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
        sa.CheckConstraint("role IN ('viewer', 'submitter', 'admin')", name="ck_tokens_role"),
    )


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("spec_hash", sa.Text, nullable=False),
        sa.Column("demand", sa.JSON, nullable=False),
        sa.Column("limit_ms", sa.BigInteger),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("unreachable_since_ms", sa.BigInteger),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("reserved_ms", sa.BigInteger),
        sa.Column("behind", sa.Text),
        sa.Column("submitted_ms", sa.BigInteger, nullable=False),
        sa.Column("not_before_ms", sa.BigInteger, nullable=False),
        sa.Column("started_ms", sa.BigInteger),
        sa.Column("ended_ms", sa.BigInteger),
        sa.Column("cause", sa.Text),
        sa.Column("detail", sa.Text),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("run_dir", sa.Text),
        sa.Column("has_code", sa.Boolean, nullable=False),
        sa.Column("resumes", sa.Text),
        sa.Column("submitted_by", sa.Text),
        sa.Column("cancel_requested_by", sa.Text),
        sa.Column("claim", sa.JSON),
        sa.Column("failures", sa.JSON, nullable=False),
        sa.Column("num_attempts", sa.Integer, nullable=False),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("body_digest", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.ForeignKeyConstraint(["resumes"], ["jobs.id"], name="fk_jobs_resumes"),
        sa.UniqueConstraint("project", "idempotency_key", name="uq_jobs_project_idempotency_key"),
        sa.CheckConstraint(
            "(ended_ms IS NOT NULL) = (state IN ('SUCCEEDED', 'FAILED', 'CANCELLED'))", name="ck_jobs_terminal_has_end"
        ),
    )
    for columns in (["submitted_ms", "id"], ["project", "submitted_ms", "id"], ["state", "submitted_ms", "id"]):
        op.create_index("ix_jobs_" + "_".join(columns), "jobs", columns)
    live = sa.text("ended_ms IS NULL")
    op.create_index("uq_jobs_live_run", "jobs", ["run_id"], unique=True, sqlite_where=live, postgresql_where=live)


def _attempts() -> None:
    op.create_table(
        "attempts",
        sa.Column("submission_id", sa.Text, nullable=False),
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("placement", sa.JSON, nullable=False),
        sa.Column("run_dir", sa.Text, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("planned_ms", sa.BigInteger, nullable=False),
        sa.Column("submitted_ms", sa.BigInteger),
        sa.Column("alive_ms", sa.BigInteger),
        sa.Column("ended_ms", sa.BigInteger),
        sa.Column("leaving_since_ms", sa.BigInteger),
        sa.Column("leaving_why", sa.Text),
        sa.Column("outcome", sa.Text),
        sa.Column("cause", sa.Text),
        sa.Column("detail", sa.Text),
        sa.Column("cluster_id", sa.Text),
        sa.PrimaryKeyConstraint("submission_id", name="pk_attempts"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_attempts_job_id"),
        sa.UniqueConstraint("job_id", "number", name="uq_attempts_job_id_number"),
    )
    held = sa.text("state IN ('PLANNED', 'SUBMITTED', 'ALIVE')")
    op.create_index(
        "uq_attempts_live_job", "attempts", ["job_id"], unique=True, sqlite_where=held, postgresql_where=held
    )
