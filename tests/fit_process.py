"""A fit in a separate process, which tests kill."""

import hashlib
from pathlib import Path

from streamkm.recompute import fitting
from streamkm.recompute.pointfile import PointFile


def fit(pipe, path, checkpoint, memory):
    """Send each iteration and, last, the result."""
    fitting.CHECKPOINT_INTERVAL_SECONDS = 0.0
    fitted = fitting.fit_points(
        PointFile.open(path),
        n_clusters=25,
        init="random",
        n_init=3,
        max_iter=25,
        memory=memory,
        trace=True,
        on_progress=lambda p: pipe.send((p.run, p.iteration)),
        checkpoint=Path(checkpoint),
    )
    whole = hashlib.sha256(fitted.centroids.tobytes() + fitted.sizes.tobytes() + fitted.labels(0, 50_000).tobytes())
    for step in fitted.trace:
        whole.update(step.centroids.tobytes() + f"{step.inertia} {step.moved}".encode())
    pipe.send(("done", whole.hexdigest(), fitted.inertia, fitted.n_iter, fitted.stopped))
