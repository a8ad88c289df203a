"""Tokens, jobs, event deliveries, recent points, and pausing of models."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Create the empty tables, and the column; no model is paused."""
    id_type = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

    def model() -> sa.Column[int]:
        return sa.Column("model_id", id_type, sa.ForeignKey("streamkm_models.id", ondelete="CASCADE"), nullable=False)

    op.add_column("streamkm_models", sa.Column("paused", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_table(
        "streamkm_recent",
        model(),
        sa.Column("ends", sa.Text, nullable=False),
        sa.Column("points", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("model_id"),
    )
    op.create_table(
        "streamkm_tokens",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("right", sa.String(16), nullable=False),
        sa.Column("models", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("name"),
        sa.UniqueConstraint("digest", name="streamkm_tokens_digest"),
    )
    op.create_table(
        "streamkm_jobs",
        model(),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("asked", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("progress", sa.Text, nullable=False),
        sa.Column("snapshot", sa.BigInteger, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("updated_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("model_id", "id"),
    )
    op.create_table(
        "streamkm_told",
        model(),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("snapshot", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("model_id", "target"),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE streamkm_recent ALTER COLUMN points SET STORAGE EXTERNAL")
