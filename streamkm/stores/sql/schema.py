"""The tables of the SQL store, in SQLAlchemy Core so that one definition serves every dialect.

``migrations`` creates them; a test compares the two. Every table has the prefix ``streamkm_``, so that the database can
be shared with other programs.

The primary keys rule out double writes: one checkpoint per model, one offset per partition, one journal entry per
commit, one snapshot per number, one quarantined record per offset.
"""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

from streamkm.errors import StoreError


class EscapedText(sa.types.TypeDecorator[str]):
    """Any Python string in a text column: printable ASCII unchanged, everything else with JSON's escapes.

    File names, and messages that quote a bad record, may contain NUL (which PostgreSQL's text type rejects) or lone
    surrogates (which SQLite's driver rejects).
    """

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else json.dumps(value)[1:-1]

    def process_result_value(self, value: Any | None, dialect: sa.Dialect) -> str | None:  # noqa: ARG002
        try:
            return None if value is None else str(json.loads(f'"{value}"'))
        except ValueError as e:
            raise StoreError(f"the text {value!r:.60} is damaged ({e})", hint="Restore a backup") from e


metadata = sa.MetaData()

# SQLite generates row ids only in a column of type INTEGER.
Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _model() -> sa.Column[int]:
    return sa.Column("model_id", Id, sa.ForeignKey("streamkm_models.id", ondelete="CASCADE"), nullable=False)


def _progress() -> list[sa.Column[Any]]:
    """Counters and time of a commit."""
    numbers = ("commit_seq", "lag", "records", "points", "bad", "tombstones")
    return [
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in numbers),
        sa.Column("committed_at", sa.Double, nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=True) for name in ("warmup_have", "warmup_need")),
    ]


models = sa.Table(
    "streamkm_models",
    metadata,
    sa.Column("id", Id, primary_key=True, autoincrement=True),
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("last_snapshot", sa.BigInteger, nullable=False),  # the newest in charge
    sa.Column("numbered", sa.BigInteger, nullable=False),  # the last snapshot number given out
    sa.Column("lost", sa.BigInteger, nullable=False),  # records that the topic deleted before they were read
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("paused", sa.Boolean, nullable=False, server_default=sa.false()),  # the owner is asked to stop reading
    sa.UniqueConstraint("name", name="streamkm_models_name"),
    sqlite_autoincrement=True,  # ids are never reused, so rows of a deleted model cannot become a new one's
)

# Not a child of `models`: epochs continue when a model is deleted and created again, or an older lease would match.
leases = sa.Table(
    "streamkm_leases",
    metadata,
    sa.Column("model", sa.String(128), primary_key=True),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("owner", EscapedText, nullable=True),
    sa.Column("expires_at", sa.Double, nullable=False),
)

# The blob comes last: SQLite then reads the other columns without its overflow pages.
checkpoints = sa.Table(
    "streamkm_checkpoints",
    metadata,
    _model(),
    *_progress(),
    sa.Column("state", sa.LargeBinary, nullable=False),
    sa.PrimaryKeyConstraint("model_id"),
)

# Checkpoints at which a replay of the journal can start, one a day. (The table has the name that schema 5 gave it.)
kept_checkpoints = sa.Table(
    "streamkm_bases",
    metadata,
    _model(),
    *_progress(),
    sa.Column("lost", sa.BigInteger, nullable=False),
    sa.Column("position", sa.Text, nullable=False),
    sa.Column("state", sa.LargeBinary, nullable=False),
    sa.PrimaryKeyConstraint("model_id", "commit_seq"),
)

progress = sa.Table(
    "streamkm_progress",
    metadata,
    _model(),
    sa.Column("topic", EscapedText, nullable=False),
    sa.Column("partition", sa.BigInteger, nullable=False),
    sa.Column("next_offset", sa.BigInteger, nullable=False),
    sa.PrimaryKeyConstraint("model_id", "topic", "partition"),
)

journal = sa.Table(
    "streamkm_journal",
    metadata,
    _model(),
    sa.Column("commit_seq", sa.BigInteger, nullable=False),
    sa.Column("batches", sa.LargeBinary, nullable=False),
    sa.PrimaryKeyConstraint("model_id", "commit_seq"),
)

# The primary key serves lookups by number, the index those by time.
snapshots = sa.Table(
    "streamkm_snapshots",
    metadata,
    _model(),
    sa.Column("id", sa.BigInteger, nullable=False),
    sa.Column("commit_seq", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("kind", EscapedText, nullable=False),
    sa.Column("reason", EscapedText, nullable=False),
    sa.Column("inertia", sa.Double, nullable=True),  # NULL is NaN, which SQLite cannot hold
    sa.Column("n_points", sa.BigInteger, nullable=False),
    sa.Column("fields", sa.Text, nullable=False),
    sa.Column("position", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("distance", sa.String(16), nullable=False),
    sa.Column("events", sa.Text, nullable=False),
    sa.Column("arrays", sa.LargeBinary, nullable=False),
    # Its promotion was requested: replaying the journal needs it, so retention keeps it.
    sa.Column("pinned", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.PrimaryKeyConstraint("model_id", "id"),
    sa.Index("streamkm_snapshots_created", "model_id", "created_at", "id"),
)

# States to continue learning from when a recomputed snapshot is promoted.
states = sa.Table(
    "streamkm_states",
    metadata,
    _model(),
    sa.Column("snapshot", sa.BigInteger, nullable=False),
    sa.Column("state", sa.LargeBinary, nullable=False),
    sa.PrimaryKeyConstraint("model_id", "snapshot"),
)

promotions = sa.Table(
    "streamkm_promotions",
    metadata,
    _model(),
    sa.Column("snapshot", sa.BigInteger, nullable=False),
    sa.Column("skip", sa.Boolean, nullable=False),
    sa.PrimaryKeyConstraint("model_id"),
)

quarantine = sa.Table(
    "streamkm_quarantine",
    metadata,
    sa.Column("id", Id, primary_key=True, autoincrement=True),
    _model(),
    sa.Column("topic", EscapedText, nullable=False),
    sa.Column("partition", sa.BigInteger, nullable=False),
    sa.Column("record_offset", sa.BigInteger, nullable=False),
    sa.Column("record_timestamp", sa.BigInteger, nullable=False),
    sa.Column("commit_seq", sa.BigInteger, nullable=False),
    sa.Column("reason", EscapedText, nullable=False),
    sa.Column("field", EscapedText, nullable=False),
    sa.Column("message", EscapedText, nullable=False),
    sa.Column("headers", sa.Text, nullable=False),
    sa.Column("key", sa.LargeBinary, nullable=True),
    sa.Column("value", sa.LargeBinary, nullable=True),
    sa.Column("delivered_at", sa.Double, nullable=True),  # when its dead letter was acknowledged
    sa.Column("value_size", sa.BigInteger, nullable=True),  # bytes of the whole value, when `value` is truncated
    sa.Column("kept_bytes", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.UniqueConstraint("model_id", "topic", "partition", "record_offset", name="streamkm_quarantine_record"),
    sa.Index("streamkm_quarantine_sizes", "model_id", "id", "kept_bytes"),
    sa.Index("streamkm_quarantine_waiting", "model_id", "delivered_at", "id"),
    sqlite_autoincrement=True,
)

# The points that were learned last, replaced by each commit.
recent = sa.Table(
    "streamkm_recent",
    metadata,
    _model(),
    sa.Column("ends", sa.Text, nullable=False),
    sa.Column("points", sa.LargeBinary, nullable=False),
    sa.PrimaryKeyConstraint("model_id"),
)

tokens = sa.Table(
    "streamkm_tokens",
    metadata,
    sa.Column("name", EscapedText, nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),  # the token itself is not stored
    sa.Column("right", sa.String(16), nullable=False),
    sa.Column("models", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.PrimaryKeyConstraint("name"),
    sa.UniqueConstraint("digest", name="streamkm_tokens_digest"),
)

jobs = sa.Table(
    "streamkm_jobs",
    metadata,
    _model(),
    sa.Column("id", EscapedText, nullable=False),
    sa.Column("asked", sa.Text, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("progress", sa.Text, nullable=False),
    sa.Column("snapshot", sa.BigInteger, nullable=False),
    sa.Column("error", EscapedText, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("updated_at", sa.Double, nullable=False),
    sa.PrimaryKeyConstraint("model_id", "id"),
)

# The last snapshot whose events were delivered, by target. (The table has the name that schema 6 gave it.)
deliveries = sa.Table(
    "streamkm_told",
    metadata,
    _model(),
    sa.Column("target", EscapedText, nullable=False),
    sa.Column("snapshot", sa.BigInteger, nullable=False),
    sa.PrimaryKeyConstraint("model_id", "target"),
)
