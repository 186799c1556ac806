"""The model registry, and indexes for pages of one state in a project and of one name."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    for columns in (["project", "state", "submitted_ms", "id"], ["name", "submitted_ms", "id", "project", "state"]):
        op.create_index("ix_jobs_" + "_".join(columns), "jobs", columns)
    op.create_table(
        "models",
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("artifact", sa.Text, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("spec_hash", sa.Text, nullable=False),
        sa.Column("data_fingerprint", sa.Text),
        sa.Column("lineage", sa.JSON, nullable=False),
        sa.Column("measurement", sa.JSON, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("project", "name", "version", name="pk_models"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_models_job_id"),
        sa.UniqueConstraint("job_id", "artifact", name="uq_models_job_id_artifact"),
    )
    op.create_table(
        "model_aliases",
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("alias", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("updated_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("project", "name", "alias", name="pk_model_aliases"),
        sa.ForeignKeyConstraint(
            ["project", "name", "version"],
            ["models.project", "models.name", "models.version"],
            name="fk_model_aliases_project_name_version",
        ),
    )
    op.execute("INSERT INTO counters (name, value) VALUES ('models', 0)")
