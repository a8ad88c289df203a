"""Writes ``jars.lock`` for a version of Apache Kafka: ``make lock-kafka VERSION=4.1.1``.

The jars are those that Maven resolves for ``org.apache.kafka:kafka_2.13`` at run time, and the slf4j binding at the
version of log4j that Kafka uses. The binding is resolved separately: together with Kafka its managed versions would
take precedence, and select an older ``kafka-clients``.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path

from jgo.maven import MavenContext

LOCK_FILE = Path(__file__).parents[1] / "streamkm" / "broker" / "jars.lock"


def main(version: str) -> None:
    """Resolve, download and hash the jars of one version, and write the lock file."""
    with tempfile.TemporaryDirectory(prefix="streamkm-lock-kafka-") as folder:
        maven = MavenContext(repo_cache=Path(folder), timeout=60)
        root, needed = maven.resolver.resolve([maven.create_dependency(f"org.apache.kafka:kafka_2.13:{version}")])
        artifacts = [dependency.artifact for dependency in (*root, *needed)]
        log4j = next(a.version for a in artifacts if a.artifactId == "log4j-core")
        artifacts.append(maven.project("org.apache.logging.log4j", "log4j-slf4j-impl").at_version(log4j).artifact())
        lines = []
        for artifact in artifacts:
            data = artifact.resolve().read_bytes()
            name = f"{artifact.groupId}:{artifact.artifactId}:{artifact.version}"
            lines.append(f"{name} {len(data)} {hashlib.sha256(data).hexdigest()}\n")
    LOCK_FILE.write_text(
        f"# The jars of Apache Kafka {version}: org.apache.kafka:kafka_2.13 with its runtime dependencies,\n"
        "# and the slf4j binding of its log4j. One per line: group:artifact:version, bytes, SHA-256. Written by\n"
        f"# `make lock-kafka VERSION={version}`.\n" + "".join(sorted(lines))
    )


if __name__ == "__main__":
    main(sys.argv[1])
