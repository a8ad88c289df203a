"""Settings, construction and errors of kafka-python's clients."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Mapping
from typing import Any

import kafka  # type: ignore[import-untyped]
import kafka.errors as ke  # type: ignore[import-untyped]

from streamkm.connectors.kafka.connection_check import check_reachable
from streamkm.connectors.kafka.driver import ErrorKind, error_message, kafka_error
from streamkm.connectors.kafka.security import resolve_security
from streamkm.connectors.kafka.sockets import use_large_reads
from streamkm.errors import SettingsError, StreamkmError
from streamkm.redaction import remember_properties
from streamkm.values import CLIENT_ALIASES

# Properties that streamkm sets itself; all others can be set by the user.
_RESERVED = frozenset(
    {
        "auto_offset_reset",
        "bootstrap_servers",
        "bootstrap_timeout_ms",
        "consumer_timeout_ms",
        "default_offset_commit_callback",
        "enable_auto_commit",
        "group_id",
        "group_instance_id",
        "isolation_level",
        "kafka_client",
        "key_deserializer",
        "max_poll_records",
        "request_timeout_ms",
        "value_deserializer",
    }
)
_INTEGER_SUFFIXES = ("_ms", "_bytes", "_connection", "_samples")


def client_settings(properties: Mapping[str, object]) -> dict[str, Any]:
    """Translate Kafka properties (``security.protocol`` or ``security_protocol``) to arguments of kafka-python.

    Parameters
    ----------
    properties
        Values by property name; values from a command line or an environment are text.

    Returns
    -------
    dict
        Values by argument name, with the types that kafka-python expects.

    Raises
    ------
    SettingsError
        A property is unknown, is set by streamkm, or has a value of the wrong type.
    """
    known = kafka.KafkaConsumer.DEFAULT_CONFIG
    settings: dict[str, Any] = {}
    remember_properties(*(f"{name}={value}" for name, value in properties.items()))
    for number, (name, value) in enumerate(properties.items(), 1):
        key = name.replace(".", "_").replace("-", "_")
        key = CLIENT_ALIASES.get(key, key)
        if key in _RESERVED:
            raise SettingsError(
                "this Kafka property is set by streamkm",
                where=name,
                hint="Positions are kept in the store; bootstrap, group and request timeout have settings of their own",
            )
        if key == "sasl_jaas_config":
            raise SettingsError(
                "JAAS is for Java clients", where=name, hint="Give sasl.username and sasl.password instead"
            )
        if key not in known:
            # Its name is not shown: it may be part of a password that contains a comma.
            like = difflib.get_close_matches(key, sorted({*known, *CLIENT_ALIASES} - _RESERVED), 1)
            raise SettingsError(
                "kafka-python does not know this Kafka property",
                where=f"property {number} of the Kafka client",
                hint=(f"Is {like[0]} meant? " if like else "A value with a comma is given in a TOML list. ")
                + f"It knows {', '.join(sorted(set(known) - _RESERVED))}",
            )
        settings[key] = _converted(name, key, known[key], value)
    return settings


def connection_settings(bootstrap: str, properties: Mapping[str, object] | None, timeout: float) -> dict[str, Any]:
    """Settings that all clients have in common.

    Parameters
    ----------
    bootstrap
        ``host:port``, several separated by commas.
    properties
        The user's properties, by their Kafka names.
    timeout
        Maximum duration of a request, and of the search for a first broker, s.

    Raises
    ------
    SettingsError
        A property is unknown or not valid.
    """
    milliseconds = int(timeout * 1000)
    return {
        **resolve_security(client_settings(properties or {})),
        "bootstrap_servers": bootstrap.split(","),
        "bootstrap_timeout_ms": milliseconds,
        "request_timeout_ms": milliseconds,
    }


def _converted(name: str, key: str, default: object, value: object) -> object:
    if not isinstance(value, str):
        return value
    if isinstance(default, bool):
        if value.lower() not in {"true", "false"}:
            raise SettingsError("the value is neither true nor false", where=name)
        return value.lower() == "true"
    if isinstance(default, int) or key.endswith(_INTEGER_SUFFIXES):
        try:
            return int(value)
        except ValueError:
            raise SettingsError("the value is not an integer", where=name) from None
    return value


def admin_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Select the settings that kafka-python's admin client has too."""
    known = kafka.KafkaAdminClient.DEFAULT_CONFIG
    return {key: value for key, value in settings.items() if key in known}


def connection_error(bootstrap: str, timeout: float = 2.0) -> str:
    """Why none of the brokers accepts connections, for health probes; empty if one does.

    Parameters
    ----------
    bootstrap
        ``host:port``, several separated by commas.
    timeout
        Maximum duration of each attempt, s.
    """
    try:
        check_reachable(bootstrap.split(","), timeout)
    except (OSError, SettingsError) as error:
        return f"{bootstrap}: {error}"
    return ""


# Error classes of kafka-python by kind. A class includes its subclasses unless they are listed themselves; a test
# checks that every error class of kafka-python is covered.
_ERROR_NAMES: dict[ErrorKind, tuple[str, ...]] = {
    ErrorKind.POSITION_LOST: (
        "LogTruncationError",
        "NoOffsetForPartitionError",
        "OffsetMovedToTieredStorageError",
        "OffsetOutOfRangeError",
        "PositionOutOfRangeError",
        "SnapshotNotFoundError",
    ),
    ErrorKind.CORRUPT_BATCH: (
        "CorruptRecordError",
        "InvalidRecordError",
        "UnsupportedCodecError",
        "UnsupportedCompressionTypeError",
        "UnsupportedForMessageFormatError",
    ),
    ErrorKind.TOPIC_NOT_FOUND: (
        "InconsistentTopicIdError",
        "InvalidTopicError",
        "ListenerNotFoundError",
        "UnknownTopicIdError",
        "UnknownTopicOrPartitionError",
    ),
    ErrorKind.SETTINGS: ("IllegalArgumentError", "InvalidConfigurationError", "KafkaConfigurationError"),
    ErrorKind.UNREACHABLE: (
        "BrokerNotAvailableError",
        "KafkaProtocolError",
        "RetriableError",
        "UnknownBrokerIdError",
        "UnrecognizedBrokerVersion",
    ),
    ErrorKind.DENIED: (
        "AuthorizationError",
        "IllegalSaslStateError",
        "SaslAuthenticationFailedError",
        "SecurityDisabledError",
        "UnsupportedSaslMechanismError",
    ),
    # Errors of producers, groups and controllers.
    ErrorKind.FAILED: (
        "CommitFailedError",
        "IllegalStateError",
        "QuotaViolationError",
        "TransactionAbortedError",
        "BrokerResponseError",
    ),
}
ERROR_KINDS: dict[type[Exception], ErrorKind] = {
    getattr(ke, name): kind for kind, names in _ERROR_NAMES.items() for name in names
}


def start_client(make: Any, *, large_reads: bool = False, **settings: Any) -> Any:
    """Create a client of kafka-python. If it finds no broker, close the thread and the sockets that it leaves behind.

    Parameters
    ----------
    make
        Class of the client.
    large_reads
        Read large pieces from sockets; see `streamkm.connectors.kafka.sockets`.
    settings
        Arguments of the client.
    """
    made: list[Any] = []

    def client(**configs: Any) -> Any:
        made.append(kafka.KafkaConsumer.DEFAULT_CONFIG["kafka_client"](**configs))
        if large_reads:
            use_large_reads(made[-1])
        return made[-1]

    try:
        return make(kafka_client=client, **settings)
    except Exception:
        for one in made:
            with contextlib.suppress(Exception):
                one.close()
        raise


def classify(error: Exception) -> ErrorKind:
    """What an error of kafka-python means, by its nearest listed base class."""
    found = next((ERROR_KINDS[base] for base in type(error).__mro__ if base in ERROR_KINDS), None)
    if found is not None:
        return found
    if isinstance(error, OSError):
        return ErrorKind.UNREACHABLE
    return ErrorKind.FAILED if isinstance(error, ke.KafkaError) else ErrorKind.FOREIGN


def translate_error(error: Exception, *, doing: str, where: str, bootstrap: str) -> StreamkmError:
    """Translate an error of kafka-python, see `kafka_error`; a `StreamkmError` is returned unchanged.

    Parameters
    ----------
    error
        The error; raise the result ``from`` it.
    doing
        Current operation, such as "reading".
    where
        Topic, or ``topic-partition@offset``.
    bootstrap
        Addresses of the brokers.
    """
    if isinstance(error, StreamkmError):
        return error
    kind = classify(error)
    return kafka_error(kind, error_message(kind, error), doing=doing, where=where, bootstrap=bootstrap)
