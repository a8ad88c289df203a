"""The first schema. Migrations are never edited when the tables change.

The statements for PostgreSQL were added before any store on it existed.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the tables."""
    id_type = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

    def model() -> sa.Column[int]:
        key = sa.ForeignKey("streamkm_models.id", ondelete="CASCADE")
        return sa.Column("model_id", id_type, key, nullable=False)

    op.create_table(
        "streamkm_models",
        sa.Column("id", id_type, primary_key=True, autoincrement=True),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("last_snapshot", sa.BigInteger, nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.UniqueConstraint("name", name="streamkm_models_name"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "streamkm_leases",
        sa.Column("model", sa.String(128), primary_key=True),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("owner", sa.Text, nullable=True),
        sa.Column("expires_at", sa.Double, nullable=False),
    )
    op.create_table(
        "streamkm_checkpoints",
        model(),
        sa.Column("commit_seq", sa.BigInteger, nullable=False),
        sa.Column("committed_at", sa.Double, nullable=False),
        sa.Column("lag", sa.BigInteger, nullable=False),
        sa.Column("records", sa.BigInteger, nullable=False),
        sa.Column("points", sa.BigInteger, nullable=False),
        sa.Column("bad", sa.BigInteger, nullable=False),
        sa.Column("tombstones", sa.BigInteger, nullable=False),
        sa.Column("warmup_have", sa.BigInteger, nullable=True),
        sa.Column("warmup_need", sa.BigInteger, nullable=True),
        sa.Column("state", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("model_id"),
    )
    if op.get_bind().dialect.name == "postgresql":
        # Without compression, which saves nothing on these numbers and takes longer than writing them.
        op.execute("ALTER TABLE streamkm_checkpoints ALTER COLUMN state SET STORAGE EXTERNAL")
    op.create_table(
        "streamkm_progress",
        model(),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("partition", sa.BigInteger, nullable=False),
        sa.Column("next_offset", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("model_id", "topic", "partition"),
    )
    op.create_table(
        "streamkm_journal",
        model(),
        sa.Column("commit_seq", sa.BigInteger, nullable=False),
        sa.Column("batches", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("model_id", "commit_seq"),
    )
    op.create_table(
        "streamkm_snapshots",
        model(),
        sa.Column("id", sa.BigInteger, nullable=False),
        sa.Column("commit_seq", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("inertia", sa.Double, nullable=True),
        sa.Column("n_points", sa.BigInteger, nullable=False),
        sa.Column("fields", sa.Text, nullable=False),
        sa.Column("position", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("arrays", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("model_id", "id"),
    )
    op.create_index("streamkm_snapshots_created", "streamkm_snapshots", ["model_id", "created_at", "id"])
    op.create_table(
        "streamkm_quarantine",
        sa.Column("id", id_type, primary_key=True, autoincrement=True),
        model(),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("partition", sa.BigInteger, nullable=False),
        sa.Column("record_offset", sa.BigInteger, nullable=False),
        sa.Column("record_timestamp", sa.BigInteger, nullable=False),
        sa.Column("commit_seq", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("field", sa.Text, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("headers", sa.Text, nullable=False),
        sa.Column("key", sa.LargeBinary, nullable=True),
        sa.Column("value", sa.LargeBinary, nullable=True),
        sa.UniqueConstraint("model_id", "topic", "partition", "record_offset", name="streamkm_quarantine_record"),
        sqlite_autoincrement=True,
    )
    op.create_index("streamkm_quarantine_newest", "streamkm_quarantine", ["model_id", "id"])
