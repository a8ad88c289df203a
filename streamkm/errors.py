"""Every error that streamkm raises.

::

    StreamkmError
    ├── SettingsError (ValueError)          a setting is missing, unknown or out of its range
    ├── DataError (ValueError)              points that a model cannot learn: shape, NaN, infinity
    ├── NotReadyError (RuntimeError)        the model is still warming up
    ├── StateError (ValueError)             a saved model that cannot be restored
    ├── SourceError
    │   ├── SourceClosedError               the source was closed
    │   ├── BrokerUnreachableError (ConnectionError)
    │   ├── BrokerRefusedError              a broker answers and denies access
    │   ├── TopicNotFoundError (LookupError)
    │   ├── PositionLostError (LookupError) a stored position that the topic no longer has
    │   ├── PartitionStalledError           a partition with unread records does not advance
    │   ├── TopicChangedError               not the topic or cluster that the model has read so far
    │   ├── CorruptBatchError               a record batch on the broker cannot be read
    │   ├── WriterFencedError               another process writes the same output
    │   ├── MissingFileError (LookupError)  no such file, or no file of a known format in a folder
    │   └── FileFormatError (ValueError)    the content of a file does not match its name
    ├── CodecUnavailableError (ConnectionError) a service that decoding needs does not answer
    ├── SignatureError (ValueError)         the signature of a webhook is wrong
    ├── BadRecordsError                     too many bad records in the stream
    ├── StoreError
    │   ├── StoreUnavailableError (ConnectionError)
    │   ├── SchemaVersionError              the store was written by a newer version of streamkm
    │   ├── LeaseLostError                  another process owns the model
    │   ├── ConflictError                   a commit that does not follow the stored position
    │   ├── ModelMismatchError (ValueError) the stored model has other settings
    │   └── NotFoundError (LookupError)     no such model or snapshot
    ├── ServiceError                        any other error of a service
    │   └── ServiceUnreachableError (ConnectionError)
    └── LocalBrokerError                    the local Apache Kafka did not start, or died
        ├── PortTakenError
        └── DownloadError (ConnectionError)

Every error has a message, ``where`` it occurred (a file, a field, ``topic-partition@offset``) and a ``hint`` what to
do. Errors of other libraries are translated where they are raised, with the original as ``__cause__``. All three texts
are redacted when the error is created.
"""

from __future__ import annotations

from streamkm.redaction import redact


class StreamkmError(Exception):
    """Base class of all errors.

    Parameters
    ----------
    message
        What is wrong.
    where
        The location: a file and line, a field, ``topic-partition@offset``.
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
    """A setting is missing, unknown or out of range."""


class DataError(StreamkmError, ValueError):
    """Points that a model cannot learn: wrong shape, NaN or infinity."""


class NotReadyError(StreamkmError, RuntimeError):
    """The model has no centroids yet: its warm-up buffer is not full."""


class StateError(StreamkmError, ValueError):
    """A saved model that cannot be restored."""


class SourceError(StreamkmError):
    """Records cannot be read."""


class SourceClosedError(SourceError):
    """The source was closed."""


class BrokerUnreachableError(SourceError, ConnectionError):
    """No broker answers."""


class BrokerRefusedError(SourceError):
    """A broker answers and denies access: login, certificate, or missing TLS."""


class TopicNotFoundError(SourceError, LookupError):
    """The topic does not exist."""


class PositionLostError(SourceError, LookupError):
    """A position that the topic no longer has (retention) or does not have yet (truncated, created anew)."""


class PartitionStalledError(SourceError):
    """A partition with unread records does not advance for a long time."""


class TopicChangedError(SourceError):
    """Not the topic (created anew under the same name) or cluster that the model has read: its offsets do not apply."""


class CorruptBatchError(SourceError):
    """A record batch cannot be read: broken checksum or unknown compression.

    Attributes
    ----------
    lost
        (topic, partition, start, stop) of the unreadable range, if known: reading can continue at ``stop``.
    """

    def __init__(
        self, message: str, *, where: str = "", hint: str = "", lost: tuple[str, int, int, int] | None = None
    ) -> None:
        super().__init__(message, where=where, hint=hint)
        self.lost = lost


class WriterFencedError(SourceError):
    """Another process writes the same output: this one must stop writing."""


class MissingFileError(SourceError, LookupError):
    """There is no such file, or no file of a known format in a folder."""


class FileFormatError(SourceError, ValueError):
    """The content of a file does not match its name, or is truncated."""


class CodecUnavailableError(StreamkmError, ConnectionError):
    """A service that decoding needs, such as a schema registry, does not answer: wait for it, as for a broker."""


class SignatureError(StreamkmError, ValueError):
    """Signature, time or headers of a webhook are wrong: it must not be trusted."""


class BadRecordsError(StreamkmError):
    """Too many bad records: continuing would move a whole broken topic into the quarantine."""


class StoreError(StreamkmError):
    """An operation of the store failed."""


class StoreUnavailableError(StoreError, ConnectionError):
    """The store cannot be reached, is full or is read-only."""


class SchemaVersionError(StoreError):
    """The store was written by a newer version of streamkm."""


class LeaseLostError(StoreError):
    """Another process owns the model: drop the state, write nothing, stand by."""


class ConflictError(StoreError):
    """A commit does not follow the stored position, so its state is not the model's; or a row exists already."""


class ModelMismatchError(StoreError, ValueError):
    """The stored model has other settings (fields, k, topic, codec)."""


class NotFoundError(StoreError, LookupError):
    """No such model, snapshot or other object of a store."""


class ServiceError(StreamkmError):
    """A service answers with an error, or is not a streamkm service."""


class ServiceUnreachableError(ServiceError, ConnectionError):
    """No service answers at the address."""


class LocalBrokerError(StreamkmError):
    """The local Apache Kafka did not start, or died."""


class PortTakenError(LocalBrokerError):
    """The requested port is in use."""


class DownloadError(LocalBrokerError, ConnectionError):
    """Kafka's jars or the Java runtime could not be downloaded."""
