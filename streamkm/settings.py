"""All settings: the source of command-line options, environment variables, the TOML file and their documentation.

A setting is a field of one of the frozen dataclasses below. Its value comes from the first of: the command line; the
environment (``STREAMKM_`` and the upper-case name, or that and ``_FILE`` for a file with the value, as containers mount
secrets); the file named by ``--config``; the default.
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from streamkm.errors import SettingsError
from streamkm.redaction import (
    MASK,
    is_secret_name,
    redact,
    redact_url,
    remember,
    remember_properties,
    remember_url,
    secrets_in,
)
from streamkm.values import (
    Check,
    ClusterCount,
    HalfLife,
    KRange,
    Seconds,
    Secret,
    Size,
    at_least,
    between,
    field_names,
    ip_networks,
    is_client_property,
    k_range,
    name_value_pairs,
    one_of,
    parse_names,
    positive_half_life,
    quote_name,
)

ENV_PREFIX = "STREAMKM_"
DEFAULT = "default"
"""Origin of a setting without a given value."""
_GIVEN = "_given"
PROPERTY_METAVAR = "NAME=VALUE"
"""Form of a setting whose option may be repeated, once for each pair."""
MAX_FILE_CHARS = 1 << 20
"""Maximum characters read from a file with a single value."""
SCALES = ("none", "standard", "robust")
SCALE_HELP = "Scaling of the fields: none; standard, by the deviation; robust, by the interquartile range"
S = TypeVar("S")
_FIELDS_HELP = "Fields of a record, or columns of a table, that are the dimensions; dotted paths address nested objects"
_K_HELP = (
    "Number of clusters; auto: chosen from the points, up to 20 (not for replay, whose default is the model's k); for "
    "fit also a range such as 2..20"
)
_INIT_HELP = (
    "Where a fit starts: random, k-means++, k-means||; for fit also a file with centroids (csv, json, npz, parquet), "
    "for replay also live (the newest snapshot) or snapshot:N"
)


def setting(default: Any, help_: str, check: Check | None = None, metavar: str = "", *, shown: bool = True) -> Any:
    """A field of a settings dataclass, with the metadata of options, docs and validation.

    Parameters
    ----------
    help_
        One line of help.
    check
        Returns what is wrong with a value, or None.
    metavar
        Placeholder of the value in help texts.
    shown
        Whether `repr` includes the value.
    """
    return dataclasses.field(default=default, repr=shown, metadata={"help": help_, "check": check, "metavar": metavar})


@dataclass(frozen=True, kw_only=True)
class StoreSettings:
    """The store of the models."""

    store: str = setting(
        "sqlite:///streamkm.db",
        "Database of models and snapshots: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE",
        metavar="URL",
        shown=False,
    )


@dataclass(frozen=True, kw_only=True)
class KafkaClientSettings:
    """How the Kafka client connects."""

    bootstrap: str = setting(
        "localhost:9092", "Kafka brokers to connect to first, separated by commas", metavar="HOST:PORT", shown=False
    )
    kafka_property: tuple[str, ...] = setting(
        (),
        "Property of the Kafka client, such as security.protocol=SSL; may be repeated (variable: separated by commas)",
        name_value_pairs,
        PROPERTY_METAVAR,
        shown=False,
    )

    @property
    def kafka_properties(self) -> dict[str, str]:
        """The properties of the Kafka client by name."""
        return dict(pair.split("=", 1) for pair in self.kafka_property)


@dataclass(frozen=True, kw_only=True)
class KafkaSettings(KafkaClientSettings):
    """Connection to Kafka, and memory of a poll."""

    max_decompressed: Size = setting(
        Size(64 << 20),
        "Most bytes that one poll decompresses, such as 64MiB; the rest follows with the next poll",
        between(1 << 20, 1 << 40),
        "SIZE",
    )


@dataclass(frozen=True, kw_only=True)
class DataLossSettings:
    """What to do about records that cannot be read any more."""

    on_data_loss: str = setting(
        "fail",
        "When records were deleted before they were read, or cannot be read: fail, or skip and count them",
        one_of("fail", "skip"),
    )


@dataclass(frozen=True, kw_only=True)
class BadRecordSettings:
    """How many bad records end a run."""

    max_bad_ratio: float = setting(
        0.5, "Stop when more than this share of the last 1000 or more records is bad", between(0, 1)
    )


@dataclass(frozen=True, kw_only=True)
class SourceSettings(KafkaSettings):
    """The topic that is read."""

    topic: str = setting("", "Topic of the points", metavar="TOPIC")
    group: str = setting("", "Consumer group that shows the progress to Kafka tools; streamkm-MODEL when empty")
    start: str = setting(
        "beginning", "Where a new model starts to read: beginning or end of the topic", one_of("beginning", "end")
    )


@dataclass(frozen=True, kw_only=True)
class CodecSettings:
    """The conversion of records to points."""

    fields: tuple[str, ...] = setting((), _FIELDS_HELP, field_names, "A,B,...")
    time_field: str = setting("", "Field with the event time; the record's timestamp when empty", metavar="FIELD")
    max_record_bytes: int = setting(1_048_576, "Maximum bytes of a record; larger ones are bad records", at_least(1))


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The model."""

    k: ClusterCount = setting(ClusterCount(8), _K_HELP, between(0, 100_000), "K")
    half_life: HalfLife | None = setting(
        None,
        "Number of points (100000) or event time (10m) after which a point counts half; empty: no decay",
        positive_half_life,
    )
    scale: str = setting("none", SCALE_HELP, one_of(*SCALES))
    distance: str = setting(
        "euclidean", "euclidean; or cosine, which ignores the length of points", one_of("euclidean", "cosine")
    )
    on_drift: str = setting(
        "resolve",
        "When points suddenly fit badly: resolve the clusters, forget the past as well, or ignore it",
        one_of("ignore", "resolve", "forget"),
    )
    outliers: str = setting(
        "gap",
        "gap: points far beyond all others are counted but not learned; keep: learn everything",
        one_of("gap", "keep"),
    )
    seed: int = setting(0, "Seed of random numbers", between(0, 2**63 - 1))


@dataclass(frozen=True, kw_only=True)
class TokenSettings:
    """Access to a service."""

    token: Secret = setting(Secret(""), "Bearer token that clients must send")


@dataclass(frozen=True, kw_only=True)
class LiveSettings(
    StoreSettings, SourceSettings, CodecSettings, ModelSettings, TokenSettings, DataLossSettings, BadRecordSettings
):
    """Settings of ``streamkm live``."""

    batch: int = setting(8192, "Maximum number of records in a mini-batch", between(1, 1_000_000))
    checkpoint_every: Seconds = setting(Seconds(1), "Time between checkpoints", at_least(0.01), "DURATION")
    snapshot_every: Seconds = setting(Seconds(10), "Time between snapshots", at_least(0.1), "DURATION")
    snapshot_points: int = setting(0, "Number of points between snapshots; 0: by time only", at_least(0))
    max_event_time_lead: Seconds = setting(
        Seconds(3600),
        "With a half-life in time: records whose event time is further ahead of their timestamp or the clock are bad",
        at_least(0),
        "DURATION",
    )
    max_bad_in_a_row: int = setting(
        1000, "Stop at this number of consecutive bad records of a partition; 0: never", at_least(0)
    )
    dead_letters: str = setting("", "Topic for copies of quarantined records; none when empty", metavar="TOPIC")
    quarantine_keep: int = setting(
        10_000,
        "Records kept in quarantine; the oldest are removed, but none whose dead letter is undelivered",
        at_least(0),
    )
    quarantine_keep_bytes: Size = setting(
        Size("256MiB"),
        "Bytes kept in quarantine, such as 256MiB; values are truncated to 64 KiB (the topic has the whole)",
        at_least(0),
        "SIZE",
    )
    keep_snapshots: str = setting(
        "thin",
        "thin: all for a day, those with events and one an hour for another week, then one a day, and the journal of "
        "eight days; all: everything",
        one_of("thin", "all"),
    )
    lease: Seconds = setting(
        Seconds(10), "Time without a renewal after which a standby takes over", at_least(1), "DURATION"
    )
    metrics_port: int = setting(0, "Port for /metrics, /livez and /readyz of the consumer; 0: none", between(0, 65535))
    metrics_host: str = setting("127.0.0.1", "Address of --metrics-port; any other than loopback requires a token")


@dataclass(frozen=True, kw_only=True)
class ResourceSettings:
    """Resources of the exact algorithm."""

    memory: Size | None = setting(
        None, "Maximum memory for points, such as 512MB; empty: unlimited", at_least(1 << 20), "SIZE"
    )
    threads: int = setting(0, "Threads of a fit; 0: one per core", between(0, 1024))


@dataclass(frozen=True, kw_only=True)
class ExactSettings(ResourceSettings):
    """Parameters of the exact algorithm."""

    n_init: int = setting(
        1, "Number of fits from different starts, of which the one with the lowest cost is kept", between(1, 10_000)
    )
    max_iter: int = setting(300, "Maximum number of iterations of a fit", between(1, 1_000_000))
    tol: float = setting(
        0.0, "A fit also stops when no centroid moves farther than this", between(0, float("inf")), "DISTANCE"
    )
    seed: int = setting(0, "Seed of random numbers", between(0, 2**32 - 1))


@dataclass(frozen=True, kw_only=True)
class FitSettings(ExactSettings):
    """Settings of ``streamkm fit``, except paths and outputs."""

    fields: tuple[str, ...] = setting((), _FIELDS_HELP, field_names, "A,B,...")
    k: KRange | None = setting(None, _K_HELP, k_range, "K")
    scale: str = setting("none", SCALE_HELP, one_of(*SCALES))
    weight_field: str = setting("", "Column with the weight of each row; equal weights when empty", metavar="FIELD")
    init: str = setting(
        "k-means++",
        _INIT_HELP,
        metavar="METHOD|FILE",
    )
    bad_rows: str = setting(
        "fail", "What to do with a row that is not a point: fail, or skip it", one_of("fail", "skip")
    )
    database: Secret = setting(Secret(""), "Database for --sql, as an SQLAlchemy URL", metavar="URL")


@dataclass(frozen=True, kw_only=True)
class ReplaySettings(StoreSettings, KafkaSettings, ExactSettings, DataLossSettings, BadRecordSettings):
    """Settings of ``streamkm replay``, except its range and folders."""

    k: KRange | None = setting(None, _K_HELP, k_range, "K")
    init: str = setting(
        "k-means++",
        _INIT_HELP,
        metavar="METHOD",
    )


@dataclass(frozen=True, kw_only=True)
class NotifySettings(StoreSettings, KafkaClientSettings):
    """Settings of ``streamkm notify``, except its targets."""

    webhook_secret: Secret = setting(
        Secret(""), "Key that signs webhooks: whsec_ and 24 to 64 bytes in base64", metavar="SECRET"
    )


@dataclass(frozen=True, kw_only=True)
class AssignSettings(StoreSettings, KafkaSettings, DataLossSettings):
    """Settings of ``streamkm assign``, except its topic."""

    commit_every: Seconds = setting(
        Seconds(0.1), "Time between transactions, which delay the assignments for readers", at_least(0.001), "DURATION"
    )


@dataclass(frozen=True, kw_only=True)
class ServeSettings(StoreSettings, TokenSettings, KafkaSettings, ResourceSettings):
    """Settings of ``streamkm serve``; those of Kafka and resources are for its jobs."""

    host: str = setting("127.0.0.1", "Address to listen on; any other than loopback requires a token")
    port: int = setting(8000, "Port to listen on; 0: any free one", between(0, 65535))
    rate_limit: float = setting(
        5000.0,
        "Requests per second per token, or per address without one, with bursts of twice as many; 0: no limit",
        between(0, 1e9),
        "NUMBER",
    )
    trusted_proxies: tuple[str, ...] = setting(
        (),
        "Addresses or networks of proxies whose X-Forwarded-For is trusted; none when empty",
        ip_networks,
        "ADDRESS,...",
    )


@dataclass(frozen=True, kw_only=True)
class ClientSettings(TokenSettings):
    """The service for ``streamkm predict``."""

    url: str = setting("http://127.0.0.1:8000", "Address of the service", metavar="URL", shown=False)


GROUPS: tuple[type, ...] = (
    SourceSettings,
    CodecSettings,
    ModelSettings,
    StoreSettings,
    ReplaySettings,
    NotifySettings,
    AssignSettings,
    FitSettings,
    LiveSettings,
    ServeSettings,
    ClientSettings,
)
TABLE: dict[str, dataclasses.Field[Any]] = {f.name: f for group in GROUPS for f in dataclasses.fields(group)}
"""Every setting by name, in the order of the docs."""


def names(cls: type) -> tuple[str, ...]:
    """Names of the settings in a class, in the order of the docs."""
    has = {f.name for f in dataclasses.fields(cls)}
    return tuple(f.name for f in TABLE.values() if f.name in has)


def load(
    cls: type[S],
    given: Mapping[str, Any],
    *,
    env: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> S:
    """Load the settings of a program.

    Parameters
    ----------
    cls
        One of the dataclasses above.
    given
        Values from the command line, as text or typed; None: not given.
    env
        Environment variables; `os.environ` if None.
    file
        TOML file with settings at its top level, including those of other programs.

    Raises
    ------
    SettingsError
        Unknown name in the file, a value of the wrong type or out of range. The message names the setting and its
        origin.
    """
    resolved = resolve(cls, given, env=env, file=file)
    loaded = cls(**{name: value for name, (value, _) in resolved.items()})
    object.__setattr__(loaded, _GIVEN, frozenset(name for name, (_, origin) in resolved.items() if origin != DEFAULT))
    return loaded


def given(settings: object) -> frozenset[str]:
    """Names of the settings with a given value, even if it equals the default; all, unless made by `load`."""
    every = frozenset(f.name for f in dataclasses.fields(settings))  # type: ignore[arg-type]
    return getattr(settings, _GIVEN, every)


def resolve(
    cls: type, given: Mapping[str, Any], *, env: Mapping[str, str] | None = None, file: Path | None = None
) -> dict[str, tuple[Any, str]]:
    """Value and origin of each setting, as `load` resolves them.

    Raises
    ------
    SettingsError
        As for `load`.
    """
    env = os.environ if env is None else env
    from_file = _read(file) if file is not None else {}
    hints = typing.get_type_hints(cls)
    result: dict[str, tuple[Any, str]] = {}
    for f in dataclasses.fields(cls):
        variable = ENV_PREFIX + f.name.upper()
        if given.get(f.name) is not None:
            raw, origin = given[f.name], "--" + f.name.replace("_", "-")
        elif found := from_environment(variable, env):
            raw, origin = found
        elif f.name in from_file:
            raw, origin = from_file[f.name], str(file)
        else:
            result[f.name] = (f.default, DEFAULT)
            continue
        result[f.name] = (_convert(f.name, hints[f.name], raw, origin, f.metadata["check"]), origin)
    return result


def holds_secret(name: str, value: str) -> bool:
    """Whether the text of a value contains a secret."""
    field = TABLE[name]
    if field.type == "Secret":
        return bool(value)
    if name == "kafka_property":
        return any(is_secret_name(part.partition("=")[0]) for part in value.split(","))
    return field.metadata["metavar"] == "URL" and bool(secrets_in(value))


def from_environment(variable: str, env: Mapping[str, str]) -> tuple[str, str] | None:
    """Value and origin of a setting, from its variable or from the file that VARIABLE_FILE names; None: not set.

    Raises
    ------
    SettingsError
        Both are set, or the file cannot be read.
    """
    named = variable + "_FILE"
    if variable in env:
        if env.get(named):
            raise SettingsError(f"{variable} is set too", where=named, hint="Set one of the two")
        return env[variable], variable
    if not env.get(named):
        return None
    try:
        with Path(env[named]).open(encoding="utf-8") as file:
            return file.read(MAX_FILE_CHARS).rstrip("\r\n"), named
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else "not UTF-8"
        raise SettingsError(f"{env[named]} cannot be read ({why})", where=named) from e


def show(settings: object) -> dict[str, str]:
    """Settings as text with masked secrets, for logs and ``streamkm config``."""
    fields = dataclasses.fields(settings)  # type: ignore[arg-type]
    return {f.name: shown(f, getattr(settings, f.name)) for f in fields}


def shown(field: dataclasses.Field[Any], value: Any) -> str:
    """The value of a setting as on the command line, with masked secrets."""
    if field.name == "kafka_property":
        return ",".join(map(_shown_property, value))
    if isinstance(value, str) and not isinstance(value, Secret) and field.metadata["metavar"] == "URL":
        return redact_url(value)
    return as_text(value)


def as_text(value: Any) -> str:
    """A value as on the command line, with masked secrets."""
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ",".join(redact(quote_name(str(part))) for part in value)
    if isinstance(value, Secret):
        return MASK if value else ""
    return redact(str(value))


def _shown_property(pair: str) -> str:
    """A property of the Kafka client with masked value; an unknown name may be part of a password with a comma."""
    name = pair.partition("=")[0]
    return f"{name}={MASK}" if is_client_property(name) else MASK


def markdown_table() -> str:
    """All settings as the table in the README."""
    rows = ["| Option | Environment | Default | Meaning |", "| --- | --- | --- | --- |"]
    for name, f in TABLE.items():
        option, default = "--" + name.replace("_", "-"), shown(f, f.default)
        code = f"`{default}`" if default else ""
        meaning = f.metadata["help"].replace("|", "\\|")
        rows.append(f"| `{option}` | `{ENV_PREFIX}{name.upper()}` | {code} | {meaning} |")
    return "\n".join(rows) + "\n"


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            table = tomllib.load(stream)
    except OSError as e:
        raise SettingsError(f"cannot be read ({e.strerror})", where=str(file)) from e
    except tomllib.TOMLDecodeError as e:
        raise SettingsError(f"is not TOML: {e}", where=str(file)) from e
    unknown = sorted(set(table) - set(TABLE))
    if unknown:
        raise SettingsError(
            f"unknown setting {', '.join(unknown)}", where=str(file), hint=f"There are: {', '.join(sorted(TABLE))}"
        )
    return table


def _convert(name: str, hint: Any, raw: Any, origin: str, check: Check | None) -> Any:
    _remember(name, hint, raw)
    try:
        value = parse_names(raw) if check is field_names and isinstance(raw, str) else _parse(hint, raw)
    except (TypeError, ValueError, OverflowError) as e:
        given = MASK if hint is Secret else repr(raw)
        of = "" if _is_named_by(origin, name) else f" for {name}"
        raise SettingsError(f"{given} is not a value{of} ({e})", where=origin) from e
    problem = check(value) if check is not None and value is not None else None
    if problem:
        raise SettingsError(problem if _is_named_by(origin, name) else f"{name}: {problem}", where=origin)
    return value


def _is_named_by(origin: str, name: str) -> bool:
    """Whether an origin names the setting: options and variables do, files do not."""
    words = origin.removesuffix("_FILE").replace("-", "_").lower()
    return words in {f"__{name}", ENV_PREFIX.lower() + name}


def _remember(name: str, hint: Any, raw: Any) -> None:
    """Register secrets in a value, so that they are redacted from all later texts."""
    if hint is Secret:
        remember(str(raw))
    if TABLE[name].metadata["metavar"] == "URL" or (name == "bootstrap" and "@" in str(raw)):
        remember_url(str(raw))
    if name == "kafka_property":
        parts = [raw] if isinstance(raw, str) else [str(part) for part in raw] if isinstance(raw, list | tuple) else []
        remember_properties(*parts)


def _parse(hint: Any, raw: Any) -> Any:
    if isinstance(hint, types.UnionType):  # X | None
        return None if raw in ("", None) else _parse(next(a for a in hint.__args__ if a is not type(None)), raw)
    if typing.get_origin(hint) is tuple:
        parts = raw.split(",") if isinstance(raw, str) else list(raw)
        return tuple(str(p).strip() for p in parts if len(parts) > 1 or str(p).strip())
    if hint in (HalfLife, KRange):
        return raw if isinstance(raw, hint) else hint.parse(raw)
    if hint is int and isinstance(raw, float | bool):
        raise ValueError("not a whole number")
    return hint(raw)
