"""Every error that streamkm raises.

::

    StreamkmError
    ├── SettingsError (ValueError)          a setting is missing, unknown or out of its range
    ├── DataError (ValueError)              points that no model can take: shape, NaN, infinity
    ├── NotReadyError (RuntimeError)        the model is still warming up
    ├── StateError (ValueError)             a saved model that cannot be restored
    ├── SourceError
    │   ├── SourceClosedError               the source was closed
    │   ├── BrokerUnreachableError (ConnectionError)
    │   ├── BrokerRefusedError              a broker answers, and does not let us in
    │   ├── TopicNotFoundError (LookupError)
    │   ├── PositionLostError (LookupError) a stored position that the topic no longer has
    │   ├── PartitionStalledError           records that could be read do not come
    │   ├── TopicChangedError               another topic or cluster than the model has read so far
    │   ├── CorruptBatchError               a record batch on the broker cannot be read
    │   ├── WriterFencedError               another process writes the same output now
    │   ├── MissingFileError (LookupError)  no such file, or none of a known kind in a folder
    │   └── FileFormatError (ValueError)    a file that is not what its name says
    ├── SignatureError (ValueError)         a webhook that does not come from where it says
    ├── BadRecordsError                     too many bad records: the stream itself looks broken
    ├── StoreError
    │   ├── StoreUnavailableError (ConnectionError)
    │   ├── SchemaVersionError              the store was written by a newer streamkm
    │   ├── LeaseLostError                  another process owns the model now
    │   ├── ConflictError                   a commit that does not follow the stored position
    │   ├── ModelMismatchError (ValueError) the stored model was made with other settings
    │   └── NotFoundError (LookupError)     no such model or snapshot
    ├── ServiceError                        what a service answers that is none of the above
    │   └── ServiceUnreachableError (ConnectionError)
    └── LocalBrokerError                    the local Apache Kafka did not start, or died
        ├── PortTakenError
        └── DownloadError (ConnectionError)

An error says what was wrong (its message), where (``where``: a file, a field, a topic-partition-offset) and what to do
(``hint``). Errors of other libraries are mapped at the edge where they appear, with the original as ``__cause__``.
All three texts are redacted as the error is made.
"""

from __future__ import annotations

from streamkm.redaction import redact


class StreamkmError(Exception):
    """Root of the tree.

    Parameters
    ----------
    message
        What was wrong.
    where
        The place: a file and line, a field, ``topic-partition@offset``.
    hint
        What to do about it.
    """

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        message = redact(message)
        super().__init__(message)
        self.message = message
        self.where = redact(where)
        self.hint = redact(hint)

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}. {self.hint}" if self.hint else text


class SettingsError(StreamkmError, ValueError):
    """A setting is missing, unknown or out of its range."""


class DataError(StreamkmError, ValueError):
    """Points that no model can take."""


class NotReadyError(StreamkmError, RuntimeError):
    """The model has no centroids yet: it is still filling its warm-up buffer."""


class StateError(StreamkmError, ValueError):
    """A saved model that cannot be restored."""


class SourceError(StreamkmError):
    """Records cannot be read."""


class SourceClosedError(SourceError):
    """The source was closed."""


class BrokerUnreachableError(SourceError, ConnectionError):
    """No broker answers."""


class BrokerRefusedError(SourceError):
    """A broker answers, and does not let us in: login, certificate, or no TLS where it is wanted."""


class TopicNotFoundError(SourceError, LookupError):
    """The topic does not exist."""


class PositionLostError(SourceError, LookupError):
    """A position that the topic no longer has (retention), or does not have yet (truncated, made anew)."""


class PartitionStalledError(SourceError):
    """A partition has records to read, and none came for a long time."""


class TopicChangedError(SourceError):
    """Another topic (made anew under the same name) or cluster than the model has read so far: offsets mean nothing."""


class CorruptBatchError(SourceError):
    """A record batch cannot be read: broken checksum or unknown compression.

    Attributes
    ----------
    lost
        (topic, partition, start, stop) of what cannot be read, where that is known: reading goes on at the stop.
    """

    def __init__(
        self, message: str, *, where: str = "", hint: str = "", lost: tuple[str, int, int, int] | None = None
    ) -> None:
        super().__init__(message, where=where, hint=hint)
        self.lost = lost


class WriterFencedError(SourceError):
    """Another process writes the same output now: write nothing more."""


class MissingFileError(SourceError, LookupError):
    """No file is there, or in a folder none of a kind that is read."""


class FileFormatError(SourceError, ValueError):
    """A file that is not what its name says, or ends in the middle."""


class SignatureError(StreamkmError, ValueError):
    """A webhook whose signature, time or headers are wrong: do not believe it."""


class BadRecordsError(StreamkmError):
    """Too many bad records: going on would drain a broken topic into the quarantine."""


class StoreError(StreamkmError):
    """The store did not do what it was asked."""


class StoreUnavailableError(StoreError, ConnectionError):
    """The store cannot be reached, is full or is read-only."""


class SchemaVersionError(StoreError):
    """The store was written by a newer streamkm."""


class LeaseLostError(StoreError):
    """Another process owns the model now: drop the state, write nothing, wait for a turn."""


class ConflictError(StoreError):
    """A commit that does not follow the stored position: the state it carries is not the model's."""


class ModelMismatchError(StoreError, ValueError):
    """The stored model was made with other settings (fields, k, topic, codec)."""


class NotFoundError(StoreError, LookupError):
    """No such model or snapshot."""


class ServiceError(StreamkmError):
    """A streamkm service answers with an error, or is none."""


class ServiceUnreachableError(ServiceError, ConnectionError):
    """No service answers at the address."""


class LocalBrokerError(StreamkmError):
    """The local Apache Kafka did not start, or died."""


class PortTakenError(LocalBrokerError):
    """The port asked for is in use."""


class DownloadError(LocalBrokerError, ConnectionError):
    """Kafka's jars or the Java runtime could not be had."""
