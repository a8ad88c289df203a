"""Snapshots get scale factors, ages and events; recomputed ones are stored with their state and can be promoted."""

from __future__ import annotations

import numpy as np
import safetensors.numpy
import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add columns and tables; older snapshots get factors of one and ages from the beginning."""
    for column in (
        sa.Column("distance", sa.String(16), nullable=False, server_default="euclidean"),
        sa.Column("events", sa.Text, nullable=False, server_default="[]"),
    ):
        op.add_column("streamkm_snapshots", column)
    op.add_column("streamkm_models", sa.Column("numbered", sa.BigInteger, nullable=False, server_default="0"))
    op.execute("UPDATE streamkm_models SET numbered = last_snapshot")
    id_type = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    for name, columns, key in (
        ("streamkm_states", [sa.Column("state", sa.LargeBinary, nullable=False)], ("model_id", "snapshot")),
        ("streamkm_promotions", [sa.Column("skip", sa.Boolean, nullable=False)], ("model_id",)),
    ):
        op.create_table(
            name,
            sa.Column("model_id", id_type, sa.ForeignKey("streamkm_models.id", ondelete="CASCADE"), nullable=False),
            sa.Column("snapshot", sa.BigInteger, nullable=False),
            *columns,
            sa.PrimaryKeyConstraint(*key),
        )
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE streamkm_states ALTER COLUMN state SET STORAGE EXTERNAL")
    snapshots = sa.table(
        "streamkm_snapshots",
        sa.column("model_id", sa.BigInteger),
        sa.column("id", sa.BigInteger),
        sa.column("arrays", sa.LargeBinary),
    )
    connection = op.get_bind()
    for model_id, number in connection.execute(sa.select(snapshots.c.model_id, snapshots.c.id)).all():
        this = (snapshots.c.model_id == model_id, snapshots.c.id == number)
        arrays = safetensors.numpy.load(connection.execute(sa.select(snapshots.c.arrays).where(*this)).scalar_one())
        k, d = arrays["centroids"].shape
        arrays |= {"born": np.zeros(k, np.int64), "factors": np.ones(d)}
        connection.execute(sa.update(snapshots).where(*this).values(arrays=safetensors.numpy.save(arrays)))
