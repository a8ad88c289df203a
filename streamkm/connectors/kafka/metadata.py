"""Metadata of topics and consumer groups, and creation of topics."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Mapping
from typing import Any

import kafka  # type: ignore[import-untyped]
import kafka.errors as ke  # type: ignore[import-untyped]

from streamkm.connectors.kafka.client import admin_settings, start_client, translate_error
from streamkm.connectors.kafka.driver import TopicDescription


def topic_id(value: object) -> str:
    """A topic's id as text; empty for brokers without topic ids (before 2.8)."""
    text = str(value or "")
    return "" if text == str(uuid.UUID(int=0)) else text


class TopicMetadata:
    """Follows the metadata that a client refreshes by itself.

    Parameters
    ----------
    cluster
        kafka-python's cluster metadata of the client.
    topic
        Name of the topic.

    Attributes
    ----------
    latest
        Id and partitions of the topic in the newest metadata, a new object with each refresh. No partitions: the topic
        was deleted, or is temporarily unavailable. None until the client reads the topic.
    """

    def __init__(self, cluster: Any, topic: str) -> None:
        self._topic = topic
        self._updated_at = time.monotonic()
        self.latest: TopicDescription | None = None
        cluster.add_listener(self._updated)

    def seconds_since_update(self) -> float:
        """Time since the last refresh, s."""
        return time.monotonic() - self._updated_at

    def _updated(self, cluster: Any) -> None:
        # On the client's thread: a single assignment, which is atomic for the reading thread.
        self._updated_at = time.monotonic()
        partitions = cluster.partitions_for_topic(self._topic)
        if partitions is not None or self.latest is not None:
            self.latest = TopicDescription(topic_id(cluster.topic_id(self._topic)), frozenset(partitions or ()))


_INACTIVE_STATES = frozenset({"", "Empty", "Dead", "Unknown"})


def group_conflict(admin: Any, group: str) -> str:
    """Describe members of a group that this program only commits offsets to; empty if there are none or it is unknown.

    Parameters
    ----------
    admin
        kafka-python's admin client.
    group
        Name of the group.
    """
    for found in admin.list_groups():
        if found.get("group_id") != group:
            continue
        kind, state = str(found.get("group_type") or "").lower(), str(found.get("group_state") or "")
        if kind == "share" or found.get("protocol_type") == "share":
            return f"a share group has the name {group}, and share groups keep no offsets of other clients"
        if state not in _INACTIVE_STATES:
            return f"the consumer group {group} has active members (its state is {state})"
    return ""


def create_topic(settings: Mapping[str, Any], topic: str, partitions: int) -> None:
    """Create a topic with the cluster's default replication, unless it exists.

    Parameters
    ----------
    settings
        Settings of a kafka-python client; those that an admin client does not have are ignored.
    topic
        Name of the topic.
    partitions
        Number of partitions.

    Raises
    ------
    SourceError
        It does not exist, and cannot be created.
    """
    try:
        with contextlib.closing(start_client(kafka.KafkaAdminClient, **admin_settings(settings))) as admin:
            (found,) = admin.describe_topics([topic])
            if ke.for_code(found["error_code"]) is ke.UnknownTopicOrPartitionError:
                with contextlib.suppress(ke.TopicAlreadyExistsError):
                    spec = {"num_partitions": partitions, "replication_factor": -1}
                    admin.create_topics({topic: spec}, wait_for_metadata=True)
    except Exception as error:
        bootstrap = ",".join(settings["bootstrap_servers"])
        translated = translate_error(error, doing="creating the topic", where=topic, bootstrap=bootstrap)
        if translated is error:
            raise
        raise translated from error
