"""Models count the records that were gone before they could be read."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the counter. Which cluster and topic a model reads, its spec has told from the beginning."""
    # Not to the checkpoints, where it would stand behind the state, and a list of models would read megabytes.
    op.add_column("streamkm_models", sa.Column("lost", sa.BigInteger, nullable=False, server_default="0"))
