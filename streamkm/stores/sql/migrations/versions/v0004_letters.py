"""Quarantined records get the delivery time of their dead letter, and snapshots an exemption from retention."""

from __future__ import annotations

import struct
import zlib

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

# Head of a journal entry: version, four counts, mini-batches before a preparation, and the promoted snapshot.
_HEAD = struct.Struct("<BHIIIiq")


def upgrade() -> None:
    """Add the columns; pin the snapshots that the journal or a promotion refers to, because replays need them."""
    op.add_column("streamkm_quarantine", sa.Column("delivered_at", sa.Double, nullable=True))
    op.create_index("streamkm_quarantine_waiting", "streamkm_quarantine", ["model_id", "delivered_at", "id"])
    pinned = sa.Column("pinned", sa.Boolean, nullable=False, server_default=sa.false())
    op.add_column("streamkm_snapshots", pinned)
    snapshots = sa.table("streamkm_snapshots", *map(sa.column, ("model_id", "id", "pinned")))
    journal = sa.table("streamkm_journal", *map(sa.column, ("model_id", "batches")))
    promotions = sa.table("streamkm_promotions", *map(sa.column, ("model_id", "snapshot")))
    connection = op.get_bind()
    named = {(row.model_id, row.snapshot) for row in connection.execute(sa.select(promotions))}
    for row in connection.execute(sa.select(journal)):
        promoted = _HEAD.unpack_from(zlib.decompress(row.batches))[-1]
        if promoted:
            named.add((row.model_id, promoted))
    for model_id, number in sorted(named):
        this = (snapshots.c.model_id == model_id, snapshots.c.id == number)
        connection.execute(sa.update(snapshots).where(*this).values(pinned=sa.true()))
