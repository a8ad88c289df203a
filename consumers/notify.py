"""``streamkm notify``: the events of a model, onto a topic and to webhooks."""

from __future__ import annotations

import contextlib
import os
import re
from typing import Literal, cast

import click

from consumers import logs
from consumers.factories import writer_opener
from consumers.options import example, verbose, warn_of_argument, with_settings
from consumers.signals import stop_on_signals
from streamkm.delivery import Notifier, NotifyOptions, Target, TopicTarget, WebhookTarget
from streamkm.errors import SettingsError
from streamkm.redaction import remember, remember_url, secrets_in
from streamkm.settings import NotifySettings, from_environment
from streamkm.stores import open_store

_WEBHOOKS = "STREAMKM_NOTIFY_WEBHOOK"
_AS_GOOD_AS_A_KEY = 16
"""Characters of a part of an address that nobody guesses."""


@click.command(
    epilog=example(
        "streamkm notify orders --to orders.events",
        "STREAMKM_WEBHOOK_SECRET_FILE=secret streamkm notify orders --webhook https://example.com/hooks/clusters",
        "streamkm notify orders --to orders.events --from beginning",
    )
)
@click.argument("model")
@click.option("--to", "topic", envvar="STREAMKM_NOTIFY_TO", metavar="TOPIC", help="Topic that gets each event.")
@click.option(
    "--webhook",
    "webhooks",
    multiple=True,
    metavar="URL",
    help="Address that gets each event by POST, signed; may be given several times. One that nobody else is to know "
    "stands, with others on lines of their own, in the file that STREAMKM_NOTIFY_WEBHOOK_FILE names.",
)
@click.option(
    "--from",
    "start",
    type=click.Choice(["now", "beginning"]),
    default="now",
    show_default=True,
    help="Where a target begins that was never told anything.",
)
@with_settings(NotifySettings)
@verbose()
def notify(
    model: str, topic: str | None, webhooks: tuple[str, ...], start: str, settings: NotifySettings, *, verbosity: int
) -> None:
    """Tell what happens to the clusters of MODEL: births, deaths, splits, merges, drifts.

    Each event at least once, in order, with an id that stays the same. What a target does not take waits in the store
    and is tried again, from a second to five minutes apart, for as long as the store keeps it.
    """
    logs.configure(verbosity)
    webhooks = _addresses(webhooks)
    if not topic and not webhooks:
        raise SettingsError("there is nobody to tell", hint="Give --to TOPIC, or --webhook URL")
    stop = stop_on_signals()
    with contextlib.closing(open_store(settings.store, create=False)) as store:
        source = store.model(model).spec.source
        if topic and topic == source.get("topic"):
            raise SettingsError(
                f"{topic} is the topic of the points: each event would come back as a record",
                where="--to",
                hint=f"Name another topic, such as {topic}.events",
            )
        targets: list[Target] = [WebhookTarget(url, settings.webhook_secret) for url in dict.fromkeys(webhooks)]
        if topic:
            targets.append(TopicTarget(topic, writer_opener(settings, stop.is_set)))
        options = NotifyOptions(start=cast("Literal['now', 'beginning']", start))
        notifier = Notifier(model, store, targets, options=options)
        notifier.run(stop)


def _addresses(given: tuple[str, ...]) -> tuple[str, ...]:
    """The addresses of webhooks: those of the command line, or of the environment. None of them shows from now on."""
    for url in given:
        # The path of an address can be as good as a password; one that is a few words is none.
        if secrets_in(url) or "?" in url or any(len(part) >= _AS_GOOD_AS_A_KEY for part in url.split("/")[3:]):
            warn_of_argument("--webhook", f"set {_WEBHOOKS}_FILE to a file that holds the address")
    found = from_environment(_WEBHOOKS, os.environ)
    urls = given or tuple(found[0].split() if found else ())
    for url in urls:
        remember_url(url)
        remember(*(part for part in re.split("[/?&=]", url)[3:] if len(part) >= _AS_GOOD_AS_A_KEY))
    return urls
