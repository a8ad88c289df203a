"""Quarantined records get their size, so that the quarantine can be limited by bytes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the columns; stored records are not truncated, but count towards the limit from the next commit on."""
    op.add_column("streamkm_quarantine", sa.Column("value_size", sa.BigInteger, nullable=True))
    op.add_column(
        "streamkm_quarantine", sa.Column("kept_bytes", sa.BigInteger, nullable=False, server_default=sa.text("0"))
    )
    op.execute(
        "UPDATE streamkm_quarantine SET kept_bytes = "
        "coalesce(length(value), 0) + coalesce(length(key), 0) + length(headers) + length(message)"
    )
    op.drop_index("streamkm_quarantine_newest", "streamkm_quarantine")
    op.create_index("streamkm_quarantine_sizes", "streamkm_quarantine", ["model_id", "id", "kept_bytes"])
