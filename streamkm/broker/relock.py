"""Write ``jars.lock`` anew, for another version of Apache Kafka.

::

    python -m streamkm.broker.relock 4.1.1 > streamkm/broker/jars.lock

The set is what Maven would resolve for ``org.apache.kafka:kafka_2.13`` at run time. The slf4j binding is added by
itself, at the version of the log4j that Kafka brings: resolved together with Kafka, its own managed versions would win
and pull ``kafka-clients`` down.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path


def main(version: str) -> None:
    """Resolve, download and hash the jars of one version, and print the lock file."""
    from jgo.maven import MavenContext  # noqa: PLC0415 - of the extra `broker`

    with tempfile.TemporaryDirectory(prefix="streamkm-relock-") as folder:
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
    sys.stdout.write(
        f"# The jars of Apache Kafka {version}: org.apache.kafka:kafka_2.13 with all that it needs at run time,\n"
        "# and the slf4j binding of its log4j. One a line: group:artifact:version, bytes, SHA-256. Written by\n"
        f"# `python -m streamkm.broker.relock {version}`.\n" + "".join(sorted(lines))
    )


if __name__ == "__main__":
    main(sys.argv[1])
