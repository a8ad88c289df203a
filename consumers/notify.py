"""``streamkm notify``: send the events of a model to a topic and to webhooks."""

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
_SECRET_LENGTH = 16
"""Characters from which a part of a URL may be a secret."""


@click.command(
    epilog=example(
        "streamkm notify orders --to orders.events",
        "STREAMKM_WEBHOOK_SECRET_FILE=secret streamkm notify orders --webhook https://example.com/hooks/clusters",
        "streamkm notify orders --to orders.events --from beginning",
    )
)
@click.argument("model")
@click.option("--to", "topic", envvar="STREAMKM_NOTIFY_TO", metavar="TOPIC", help="Topic of the events.")
@click.option(
    "--webhook",
    "webhooks",
    multiple=True,
    metavar="URL",
    help="URL that gets each event by a signed POST; may be repeated. Secret URLs are read, one per line, from the "
    "file that STREAMKM_NOTIFY_WEBHOOK_FILE names.",
)
@click.option(
    "--from",
    "start",
    type=click.Choice(["now", "beginning"]),
    default="now",
    show_default=True,
    help="Start of a new target.",
)
@with_settings(NotifySettings)
@verbose()
def notify(
    model: str, topic: str | None, webhooks: tuple[str, ...], start: str, settings: NotifySettings, *, verbosity: int
) -> None:
    """Send the events of MODEL: births, deaths, splits, merges, drifts.

    Each event is delivered at least once, in order, with a constant id. An event that a target does not accept is
    retried, with delays from a second to five minutes, for as long as the store keeps it.
    """
    logs.configure(verbosity)
    webhooks = _webhook_urls(webhooks)
    if not topic and not webhooks:
        raise SettingsError("there is no target", hint="Give --to TOPIC, or --webhook URL")
    stop = stop_on_signals()
    with contextlib.closing(open_store(settings.store, create=False)) as store:
        source = store.model(model).spec.source
        if topic and topic == source.get("topic"):
            raise SettingsError(
                f"{topic} is the topic of the records: each event would be read as a record",
                where="--to",
                hint=f"Name another topic, such as {topic}.events",
            )
        targets: list[Target] = [WebhookTarget(url, settings.webhook_secret) for url in dict.fromkeys(webhooks)]
        if topic:
            targets.append(TopicTarget(topic, writer_opener(settings, stop.is_set)))
        options = NotifyOptions(start=cast("Literal['now', 'beginning']", start))
        notifier = Notifier(model, store, targets, options=options)
        notifier.run(stop)


def _webhook_urls(given: tuple[str, ...]) -> tuple[str, ...]:
    """URLs of webhooks, from the command line or the environment; they are redacted in all output."""
    for url in given:
        # The path of a URL may be a secret, unless its parts are short.
        if secrets_in(url) or "?" in url or any(len(part) >= _SECRET_LENGTH for part in url.split("/")[3:]):
            warn_of_argument("--webhook", f"set {_WEBHOOKS}_FILE to a file that holds the URL")
    found = from_environment(_WEBHOOKS, os.environ)
    urls = given or tuple(found[0].split() if found else ())
    for url in urls:
        remember_url(url)
        remember(*(part for part in re.split("[/?&=]", url)[3:] if len(part) >= _SECRET_LENGTH))
    return urls
