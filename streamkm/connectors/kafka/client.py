"""The edge to kafka-python: its settings, and its errors in our words."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Mapping
from typing import Any

import kafka  # type: ignore[import-untyped]
import kafka.errors as ke  # type: ignore[import-untyped]

from streamkm.connectors.kafka.connection_check import check_reachable
from streamkm.connectors.kafka.sockets import use_large_reads
from streamkm.errors import (
    BrokerUnreachableError,
    CorruptBatchError,
    PositionLostError,
    SettingsError,
    SourceError,
    StreamkmError,
    TopicNotFoundError,
)
from streamkm.redaction import remember_properties
from streamkm.values import CLIENT_ALIASES

# What the contract of a source decides; everything else is the user's.
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
    """Translate Kafka properties (``security.protocol`` or ``security_protocol``) to kafka-python's arguments.

    Parameters
    ----------
    properties
        By name; values may be text, as they come from a command line or an environment.

    Raises
    ------
    SettingsError
        A property is unknown, is decided by streamkm, or is not of its type.
    """
    known = kafka.KafkaConsumer.DEFAULT_CONFIG
    settings: dict[str, Any] = {}
    remember_properties(*(f"{name}={value}" for name, value in properties.items()))
    for number, (name, value) in enumerate(properties.items(), 1):
        key = name.replace(".", "_").replace("-", "_")
        key = CLIENT_ALIASES.get(key, key)
        if key in _RESERVED:
            raise SettingsError(
                "this Kafka property is decided by streamkm",
                where=name,
                hint="Positions live in the store; bootstrap, group and request timeout are settings of their own",
            )
        if key == "sasl_jaas_config":
            raise SettingsError(
                "JAAS is for Java clients", where=name, hint="Give sasl.username and sasl.password instead"
            )
        if key not in known:
            # Its name is not shown: it can be the rest of a password that has a comma.
            like = difflib.get_close_matches(key, sorted({*known, *CLIENT_ALIASES} - _RESERVED), 1)
            raise SettingsError(
                "kafka-python does not know this Kafka property",
                where=f"property {number} of the Kafka client",
                hint=(f"Is {like[0]} meant? " if like else "A value with a comma is given in a TOML list. ")
                + f"It knows {', '.join(sorted(set(known) - _RESERVED))}",
            )
        settings[key] = _converted(name, key, known[key], value)
    return settings


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
    """Those of a consumer's settings that an admin client has too."""
    known = kafka.KafkaAdminClient.DEFAULT_CONFIG
    return {key: value for key, value in settings.items() if key in known}


def connection_error(bootstrap: str, timeout: float = 2.0) -> str:
    """Why none of the brokers takes connections, or nothing if one does: for probes."""
    try:
        check_reachable(bootstrap.split(","), timeout)
    except (OSError, SettingsError) as error:
        return f"{bootstrap}: {error}"
    return ""


# kafka-python's errors in our words. A class stands for its subclasses, unless they are listed themselves; a test holds
# that every error kafka-python has comes under one of these.
_ERROR_NAMES: dict[type[SourceError | SettingsError], tuple[str, ...]] = {
    PositionLostError: (
        "LogTruncationError",
        "NoOffsetForPartitionError",
        "OffsetMovedToTieredStorageError",
        "OffsetOutOfRangeError",
        "PositionOutOfRangeError",
        "SnapshotNotFoundError",
    ),
    CorruptBatchError: (
        "CorruptRecordError",
        "InvalidRecordError",
        "UnsupportedCodecError",
        "UnsupportedCompressionTypeError",
        "UnsupportedForMessageFormatError",
    ),
    TopicNotFoundError: (
        "InconsistentTopicIdError",
        "InvalidTopicError",
        "ListenerNotFoundError",
        "UnknownTopicIdError",
        "UnknownTopicOrPartitionError",
    ),
    SettingsError: ("IllegalArgumentError", "InvalidConfigurationError", "KafkaConfigurationError"),
    BrokerUnreachableError: (
        "BrokerNotAvailableError",
        "KafkaProtocolError",
        "RetriableError",
        "UnknownBrokerIdError",
        "UnrecognizedBrokerVersion",
    ),
    # Answers to requests: of a broker that refuses, and those that only producers, groups and controllers get.
    SourceError: (
        "AuthorizationError",
        "CommitFailedError",
        "IllegalStateError",
        "QuotaViolationError",
        "SaslAuthenticationFailedError",
        "TransactionAbortedError",
        "BrokerResponseError",
    ),
}
ERROR_CLASSES: dict[type[Exception], type[SourceError | SettingsError]] = {
    getattr(ke, name): ours for ours, names in _ERROR_NAMES.items() for name in names
}

_REFUSED = (
    ke.AuthorizationError,
    ke.SaslAuthenticationFailedError,
    ke.UnsupportedSaslMechanismError,
    ke.IllegalSaslStateError,
    ke.SecurityDisabledError,
)


def start_client(make: Any, *, large_reads: bool = False, **settings: Any) -> Any:
    """Make a client; one that finds no broker leaves its thread and sockets behind, so those are closed here."""
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


def error_class(error: type[BaseException]) -> type[SourceError | SettingsError] | None:
    """Our class for an error of kafka-python, by the nearest of its bases that has one."""
    for base in error.__mro__:
        found = ERROR_CLASSES.get(base)
        if found is not None:
            return found
    return None


def translate_error(error: Exception, *, doing: str, where: str, bootstrap: str) -> StreamkmError:  # noqa: PLR0911
    """Say an error of kafka-python in our words; raise the result ``from`` it.

    Parameters
    ----------
    error
        What kafka-python raised; an error of ours is returned as it is.
    doing
        What was being done, such as "reading".
    where
        The topic, or ``topic-partition@offset``.
    bootstrap
        Where the broker was looked for.
    """
    if isinstance(error, StreamkmError):
        return error
    said = str(error) or type(error).__name__
    ours = error_class(type(error))
    if ours is BrokerUnreachableError or isinstance(error, OSError):
        return BrokerUnreachableError(
            f"no broker answered at {bootstrap} while {doing} ({said})",
            where=where,
            hint="Is it running, and does it advertise an address that is reachable from here?",
        )
    if ours is PositionLostError:
        return PositionLostError(
            f"the position is no longer in the topic ({said})",
            where=where,
            hint="Retention removed it, or the topic was truncated; choose a new position to go on from",
        )
    if ours is CorruptBatchError:
        return CorruptBatchError(
            f"a record batch cannot be read ({said})",
            where=where,
            hint="Restore the partition from a replica, or go on from an offset behind the batch",
        )
    if ours is TopicNotFoundError:
        return TopicNotFoundError(f"the topic does not exist ({said})", where=where)
    if ours is SettingsError:
        return SettingsError(f"kafka-python refuses its settings: {said}", where=where)
    if isinstance(error, _REFUSED):
        return SourceError(
            f"the broker refuses us while {doing}: {said}",
            where=where,
            hint="Check the credentials, and that they may describe and read the topic and use the group",
        )
    return SourceError(f"kafka-python failed while {doing}: {type(error).__name__}: {said}", where=where)
