"""``streamkm predict``: predict points from standard input."""

from __future__ import annotations

import sys

import click
import numpy as np
from numpy.typing import NDArray

from consumers import terminal
from consumers.options import example, with_settings
from streamkm.client import Client
from streamkm.delivery.predictions import LinePredictor, Predicted
from streamkm.errors import DataError
from streamkm.settings import ClientSettings


@click.command(
    epilog=example(
        "streamkm predict orders --csv <orders.csv >clustered.csv",
        """echo '{"amount": 12, "lat": 52.5, "lon": 13.4}' | streamkm predict orders""",
    )
)
@click.argument("model")
@with_settings(ClientSettings)
@click.option("--snapshot", type=click.IntRange(min=1), help="Number of the snapshot; the newest by default.")
@click.option(
    "--csv", "as_csv", is_flag=True, help="The input is CSV with a header; else each line is a JSON object or array."
)
def predict(model: str, settings: ClientSettings, *, snapshot: int | None, as_csv: bool) -> None:
    """Predict the cluster of MODEL of each point on standard input.

    Each line is a JSON object by field, or an array of numbers, and gets a line of JSON: cluster, distance, score. With
    --csv, columns are found by the names in the header, and the same three are added to each row. All points are
    predicted with one snapshot. Lines may arrive slowly: they are predicted after at most 0.2 s.
    """
    if sys.stdin is None:
        raise DataError("standard input is closed", hint=f"Send points to it: streamkm predict {model} <points.jsonl")
    with Client(settings.url, token=settings.token) as client:
        fields = client.model(model).fields

        def predict_points(points: NDArray[np.float64], number: int | None) -> Predicted:
            found = client.predict(model, points, snapshot=number)
            return found.snapshot, found.ids, found.distances, found.scores

        predictor = LinePredictor(fields, predict_points, terminal.write, snapshot)
        (predictor.predict_csv if as_csv else predictor.predict_json)(sys.stdin.buffer)
