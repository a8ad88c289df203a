"""The live loop of one model, by whoever holds its lease."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from streamkm.codecs.base import Codec
from streamkm.connectors.base import Source, Writer
from streamkm.engine import source_checks
from streamkm.engine.context import Clock, EngineContext, EngineOptions, StopSignal
from streamkm.engine.learn import codec_for_model
from streamkm.engine.session import LeaseSession
from streamkm.errors import ConflictError, LeaseLostError, SettingsError, StoreUnavailableError
from streamkm.metrics import LEASE_HELD, Metrics
from streamkm.models.spec import new_learner
from streamkm.reporting import ProgressReporter
from streamkm.state import ModelSpec
from streamkm.stores.base import Lease, Store

log = logging.getLogger("streamkm.engine")


class Engine:
    """Keeps one model learning from one source, and its store up to date.

    Only the engine that holds the lease in the store works; the others stand by. All state of an owner lives in its
    `LeaseSession`, which is dropped when the lease is lost, so nothing learned without the lease can be written.

    Parameters
    ----------
    spec
        The model; made in the store if it is new, compared with the stored one otherwise.
    open_source
        Gives a fresh source. Called again after an error of the source.
    open_writer
        Gives a fresh writer for dead letters. Called again after an error of the writer.

    Raises
    ------
    SettingsError
        The spec describes no model, or there is a topic for dead letters and no writer.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        open_source: Callable[[], Source],
        codec: Codec,
        store: Store,
        options: EngineOptions,
        metrics: Metrics | None = None,
        clock: Clock = time,
        open_writer: Callable[[], Writer] | None = None,
    ) -> None:
        new_learner(spec)  # what cannot be made must not get a name in the store
        if options.dead_letters and open_writer is None:
            raise SettingsError("there is a topic for dead letters, and nothing that writes them", where="dead_letters")
        metrics = metrics if metrics is not None else Metrics()
        self.context = EngineContext(
            spec, open_source, codec_for_model(codec, spec), store, options, metrics, clock, open_writer
        )

    def run(self, stop: StopSignal) -> None:
        """Work until `stop` is set: then finish the mini-batch, commit, publish, release the lease and return.

        Raises
        ------
        ModelMismatchError
            The store has a model of this name that was made with other settings.
        PositionLostError
            The topic no longer has the position at which the model stands, and `EngineOptions.on_data_loss` is to fail.
        TopicChangedError
            The topic or the cluster is another one than the model has read.
        TopicNotFoundError, CorruptBatchError
            The source cannot go on.
        BadRecordsError
            Too many bad records. All before them is committed; they are not, and will be met again.
        StoreUnavailableError
            The store did not take a commit for longer than the lease. All before the last commit is safe. Who has
            committed nothing yet waits for as long as it takes.
        """
        context, name = self.context, self.context.spec.name
        source_checks.check_same_spec(context.spec, context.store.create(context.spec, context.clock.time()))
        while not stop.is_set():
            lease = self._wait_for_lease(stop)
            if lease is None:
                return
            context.metrics.set(LEASE_HELD, 1, model=name)
            context.heartbeat.beat("taking over", "owner")
            tenure: LeaseSession | None = None
            try:
                with LeaseSession(context, lease) as tenure:
                    tenure.work(stop)
            except StoreUnavailableError as e:
                if tenure is not None and tenure.has_committed:
                    raise
                # A lease needs less room than a commit. Who took over from an owner that could not write, and cannot
                # either, goes on standing by.
                context.count_error("commit")
                context.mark_down("store", e)
                log.warning("%s: the store takes no commit, back to waiting: %s", name, e)
                stop.wait(min(1.0, context.options.lease / 4))
            except (LeaseLostError, ConflictError) as e:
                context.count_error("lease")
                log.warning("%s: lost the model, back to waiting: %s", name, e)
            finally:
                context.metrics.set(LEASE_HELD, 0, model=name)
                context.heartbeat.beat("leaving", "stopped")

    def _wait_for_lease(self, stop: StopSignal) -> Lease | None:
        context, name, o = self.context, self.context.spec.name, self.context.options
        context.metrics.set(LEASE_HELD, 0, model=name)
        told = False
        report = ProgressReporter(log, name, context.clock.monotonic, fate="")
        while not stop.is_set():
            context.heartbeat.beat("waiting for the lease", "standby")
            try:
                lease = context.store.acquire(name, o.owner, o.lease, context.clock.time())
            except StoreUnavailableError as e:
                # However long: a disk that is full, a lock that is held, a server that is gone. Whoever stands by is
                # wanted when it is back, and ending would only make an orchestrator start it again and again.
                report.mark_down("store", e)
                context.mark_down("store", e)
                lease = None
            else:
                report.mark_up("store")
                context.mark_up("store")
            if lease is not None:
                log.info("%s: owner %s, epoch %d", name, o.owner, lease.epoch)
                return lease
            if not told:
                log.info("%s: another owner is at work, standing by", name)
                told = True
            stop.wait(min(1.0, o.lease / 4))
        return None
