"""``streamkm assign``: write the cluster of each record to another topic."""

from __future__ import annotations

import contextlib

import click

from consumers import logs
from consumers.factories import codec_resources, source_opener, transactions_opener
from consumers.options import example, verbose, with_settings
from consumers.signals import stop_on_signals
from streamkm.codecs import make_codec
from streamkm.connectors import KafkaSource
from streamkm.delivery import Assigner, AssignOptions
from streamkm.engine import check_same_stream, codec_for_model
from streamkm.errors import SettingsError
from streamkm.settings import AssignSettings
from streamkm.stores import open_store


@click.command(
    epilog=example(
        "streamkm assign orders --to orders.clusters",
        "streamkm assign orders --to orders.clusters --start end --commit-every 1s",
    )
)
@click.argument("model")
@click.option("--to", "target", required=True, envvar="STREAMKM_ASSIGN_TO", metavar="TOPIC", help="Topic to write.")
@click.option(
    "--start",
    type=click.Choice(["beginning", "end", "committed"]),
    help="Start of a target without a position of streamkm; beginning if it is empty. committed: that of the group.",
)
@with_settings(AssignSettings)
@verbose()
def assign(model: str, target: str, start: str | None, settings: AssignSettings, *, verbosity: int) -> None:
    """Write the cluster of each record of MODEL's topic to another topic, exactly once.

    It runs beside the consumer that learns, and does not delay it. A second process for the same model and target takes
    over from the first, which exits with status 12.
    """
    logs.configure(verbosity)
    stop = stop_on_signals()
    with contextlib.closing(open_store(settings.store, create=False)) as store:
        spec = store.model(model).spec
        topic = str(spec.source["topic"])
        if target == topic:
            raise SettingsError(
                f"{topic} is the topic of the records: each assignment would be read as a record",
                where="--to",
                hint=f"Name another topic, such as {topic}.clusters",
            )
        open_source = source_opener(topic, settings, spec.codec, should_stop=stop.is_set)

        def open_checked() -> KafkaSource:
            source = open_source()
            try:
                check_same_stream(spec, source.identity())
            except BaseException:
                source.close()
                raise
            return source

        assigner = Assigner(
            model,
            target,
            open_source=open_checked,
            # Names of models and topics have no colon, so that no two pairs share a position.
            open_writer=transactions_opener(f"streamkm-{model}-assign:{target}", settings, stop.is_set),
            codec=codec_for_model(make_codec(spec.codec, codec_resources()), spec),
            store=store,
            options=AssignOptions(
                commit_interval=settings.commit_every,
                start=start,
                skip_lost=settings.on_data_loss == "skip",
            ),
        )
        try:
            assigner.run(stop)
        finally:
            assigner.log_summary()
