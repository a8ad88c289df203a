"""Models count records that were deleted before they were read."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the counter; the ids of cluster and topic have been in the spec from the first schema on."""
    # Not in checkpoints: a column behind the state blob would make listings of models read megabytes.
    op.add_column("streamkm_models", sa.Column("lost", sa.BigInteger, nullable=False, server_default="0"))
