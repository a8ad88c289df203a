"""The live loop of one model: waits for the lease, then runs a `LeaseSession`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from streamkm.codecs.base import Codec
from streamkm.connectors.base import Source, Writer
from streamkm.engine import source_checks
from streamkm.engine.context import Clock, EngineContext, EngineOptions, StopRequest
from streamkm.engine.learn import codec_for_model
from streamkm.engine.session import LeaseSession
from streamkm.engine.store_outage import StoreOutage
from streamkm.errors import ConflictError, LeaseLostError, SettingsError, StoreUnavailableError
from streamkm.metrics import LEASE_HELD, Metrics
from streamkm.models.spec import new_learner
from streamkm.state import ModelSpec
from streamkm.stores.base import Lease, Store

log = logging.getLogger("streamkm.engine")


class Engine:
    """Learns one model from one source, and commits it to a store.

    Only the engine that holds the lease in the store works; the others stand by. All state of an owner lives in its
    `LeaseSession`, which is dropped when the lease is lost, so nothing learned without the lease can be written.

    Parameters
    ----------
    spec
        The model; created in the store if it is new, otherwise compared with the stored one.
    open_source
        Opens a source; called again after an error of the source.
    clock
        Replaced in tests.
    open_writer
        Opens a writer for dead letters; called again after an error of the writer.

    Raises
    ------
    SettingsError
        The spec is not valid, or there is a topic for dead letters and no writer.
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
        new_learner(spec)  # a spec that is not valid must not get a name in the store
        if options.dead_letters and open_writer is None:
            raise SettingsError("there is a topic for dead letters, but no writer", where="dead_letters")
        metrics = metrics if metrics is not None else Metrics()
        self.context = EngineContext(
            spec, open_source, codec_for_model(codec, spec), store, options, metrics, clock, open_writer
        )
        self._store_outage = StoreOutage(self.context)

    def run(self, stop: StopRequest) -> None:
        """Run until `stop` is set; then finish the mini-batch, commit, publish, release the lease and return.

        Raises
        ------
        ModelMismatchError
            The store has a model with this name and other settings.
        PositionLostError
            The topic no longer has the model's position, and `EngineOptions.on_data_loss` is ``fail``.
        TopicChangedError
            The topic or the cluster is not the one that the model has read so far.
        TopicNotFoundError, CorruptBatchError
            The source cannot be read.
        PartitionStalledError
            A partition does not advance, and reopening the source did not help.
        BadRecordsError
            Too many bad records. Everything before them is committed; they are not, and will be read again.
        StoreUnavailableError
            A commit failed for longer than the lease. Everything up to the last commit is safe. Without a commit since
            the lease was acquired, the engine stands by instead, for as long as it takes.
        """
        context, name = self.context, self.context.spec.name
        source_checks.check_same_spec(context.spec, context.store.create(context.spec, context.clock.time()))
        while not stop.is_set():
            lease = self._wait_for_lease(stop)
            if lease is None:
                return
            context.metrics.set(LEASE_HELD, 1, model=name)
            context.heartbeat.beat("taking over", "owner")
            session: LeaseSession | None = None
            try:
                with LeaseSession(context, lease, self._store_outage) as session:
                    session.work(stop)
            except StoreUnavailableError as e:
                if session is not None and session.has_committed:
                    raise
                # A lease needs less disk space than a commit. An engine that took over and cannot commit either goes
                # back to standby.
                context.count_error("commit")
                self._store_outage.failed(e)
                stop.wait(min(1.0, context.options.lease / 4))
            except (LeaseLostError, ConflictError) as e:
                context.count_error("lease")
                log.warning("%s: lost the lease, back to standby: %s", name, e)
            finally:
                context.metrics.set(LEASE_HELD, 0, model=name)
                context.heartbeat.beat("leaving", "stopped")

    def _wait_for_lease(self, stop: StopRequest) -> Lease | None:
        context, name, o = self.context, self.context.spec.name, self.context.options
        context.metrics.set(LEASE_HELD, 0, model=name)
        logged = False
        while not stop.is_set():
            context.heartbeat.beat("waiting for the lease", "standby")
            try:
                lease = context.store.acquire(name, o.owner, o.lease, context.clock.time())
            except StoreUnavailableError as e:
                # Without a limit: the standby is needed once the store is back, and if the process ended, an
                # orchestrator would only restart it again and again.
                self._store_outage.failed(e)
                lease = None
            else:
                self._store_outage.answered()
            if lease is not None:
                log.info("%s: owner %s, epoch %d", name, o.owner, lease.epoch)
                return lease
            if not logged:
                log.info("%s: another owner holds the lease, standing by", name)
                logged = True
            stop.wait(min(1.0, o.lease / 4))
        return None
