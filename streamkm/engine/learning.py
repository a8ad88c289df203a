"""Learning one mini-batch: what the live loop, catching up and the re-run of a journal do alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from streamkm.models import OnlineKMeans
from streamkm.records import Batch


def learn(learner: OnlineKMeans, batches: Sequence[Batch]) -> int:
    """Learn one mini-batch: the points of its ranges, one range after the other, in one step.

    The live loop and the re-run of a journal both go through here, so they do the same arithmetic.

    Returns
    -------
    int
        Number of points.
    """
    batches = [b for b in batches if len(b)]
    if not batches:
        return 0
    one = len(batches) == 1
    points = batches[0].points if one else np.concatenate([b.points for b in batches])
    times = batches[0].times if one else np.concatenate([b.times for b in batches])
    learner.learn_many(points, times=times)
    return len(points)
