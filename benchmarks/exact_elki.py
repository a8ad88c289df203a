"""ELKI's exact K-Means for ``benchmarks/exact.py``: a Java virtual machine beside the engine's process.

ELKI works in float64 and on one thread, however many the others are given. Only its clustering call is timed, inside
the virtual machine, after fits that do not count, so that its code is compiled by then.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
from exact_data import Points
from numpy.typing import NDArray

PROGRAM = Path(__file__).parent / "elki" / "KMeansBench.java"
WARM = 3.0  # seconds of fits that do not count

Answer = tuple[NDArray[np.float64], NDArray[np.int32], int, float]  # centroids, labels, iterations, seconds


def missing(jars: Path | None) -> str:
    """Tell what ELKI lacks to run here; nothing if it is there."""
    if jars is None:
        return "the folder of its jars is not given (--elki)"
    if not any(jars.glob("elki-clustering-*.jar")):
        return "no elki-clustering jar is in the folder given with --elki"
    return "" if shutil.which("javac") else "there is no JDK of Java 17 or later"


def elki(algorithm: str, jars: Path, most: int) -> Callable[[Points, Points, int], Answer]:
    """Make an engine of "exponion" or "shallot", with at most so many iterations.

    Its machine keeps the points: it is started by the first call and serves those that follow, with the same points.
    """
    machine: subprocess.Popen[bytes] | None = None
    n_iter = 0

    def run(X: Points, C: Points, iterations: int) -> Answer:  # noqa: ARG001
        nonlocal machine, n_iter
        if machine is None:
            # One thread collects garbage too; the machine ends with the pipe, so with this process.
            command = ["java", "-XX:+UseSerialGC", "-cp", f"{jars}/*", str(PROGRAM), algorithm, str(most), str(WARM)]
            machine = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            machine.stdin.write(struct.pack(">3i", *X.shape, len(C)) + X.astype(">f8").tobytes())
            machine.stdin.write(C.astype(">f8").tobytes())
            machine.stdin.flush()
            (n_iter,) = struct.unpack(">i", machine.stdout.read(4))
        machine.stdin.write(b"\n")
        machine.stdin.flush()
        seconds, k = struct.unpack(">di", machine.stdout.read(12))
        centroids = np.frombuffer(machine.stdout.read(8 * k * X.shape[1]), ">f8").reshape(k, -1)
        labels = np.frombuffer(machine.stdout.read(4 * len(X)), ">i4")
        return centroids.astype(float), labels.astype(np.int32), n_iter, seconds

    return run
