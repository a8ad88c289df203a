"""Copies the jars of Kafka and a Java to run them into a folder, for the image that stands in for apache/kafka."""

import shutil
import sys
from pathlib import Path

from streamkm.broker.distribution import get_distribution

if __name__ == "__main__":
    target = Path(sys.argv[1])
    found = get_distribution()
    for jar in found.class_path:
        shutil.copy(jar, target / "jars")
    shutil.copytree(Path(found.java).parents[1], target / "jre", symlinks=True)
