"""What an engine is put together from."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from streamkm.codecs.base import Codec
from streamkm.engine.options import Clock, EngineOptions
from streamkm.engine.pulse import Pulse
from streamkm.errors import StreamkmError
from streamkm.metrics import ALARMS, ERRORS, Metrics
from streamkm.sources.base import Source, Writer
from streamkm.state import ModelSpec
from streamkm.stores.base import Store

log = logging.getLogger("streamkm.engine")


@dataclass(frozen=True)
class Parts:
    """What an engine is put together from.

    Attributes
    ----------
    open_source
        Gives a fresh source; called again after an error of the source.
    open_writer
        Gives a fresh writer for dead letters; called again after an error of the writer.
    pulse
        Where the loop says that it goes on, for probes and watchdogs.
    """

    spec: ModelSpec
    open_source: Callable[[], Source]
    codec: Codec
    store: Store
    options: EngineOptions
    metrics: Metrics
    clock: Clock
    open_writer: Callable[[], Writer] | None = None
    pulse: Pulse = field(default_factory=Pulse)

    def failed(self, stage: str) -> None:
        """Count a failure that is dealt with."""
        self.metrics.add(ERRORS, model=self.spec.name, stage=stage)

    def away(self, what: str, error: StreamkmError) -> None:
        """The ``broker`` or the ``store`` does not answer: an alarm once for each time that it goes away."""
        if self.pulse.trouble(what, error.message):
            self.metrics.add(ALARMS, model=self.spec.name, alarm=f"{what}-away")

    def back(self, what: str) -> None:
        """It answers."""
        if self.pulse.well(what):
            log.info("%s: the %s is back", self.spec.name, what)
