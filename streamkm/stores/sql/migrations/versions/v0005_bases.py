"""Kept checkpoints, at which replays of the journal can start."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Create the table. A model that is older than a day gets its first entry with its next commits."""
    id_type = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    numbers = ("commit_seq", "lag", "records", "points", "bad", "tombstones", "lost")
    op.create_table(
        "streamkm_bases",
        sa.Column("model_id", id_type, sa.ForeignKey("streamkm_models.id", ondelete="CASCADE"), nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in numbers),
        sa.Column("committed_at", sa.Double, nullable=False),
        sa.Column("warmup_have", sa.BigInteger, nullable=True),
        sa.Column("warmup_need", sa.BigInteger, nullable=True),
        sa.Column("position", sa.Text, nullable=False),
        sa.Column("state", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("model_id", "commit_seq"),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE streamkm_bases ALTER COLUMN state SET STORAGE EXTERNAL")
