"""Delivers results: assignments to a topic, cluster events to a topic and to webhooks, predictions of lines of text."""

from streamkm.delivery.assignments import Assigner, AssignOptions
from streamkm.delivery.events import EventMessage, Notifier, NotifyOptions, Target, TopicTarget
from streamkm.delivery.webhooks import WebhookTarget, verify

__all__ = [
    "AssignOptions",
    "Assigner",
    "EventMessage",
    "Notifier",
    "NotifyOptions",
    "Target",
    "TopicTarget",
    "WebhookTarget",
    "verify",
]
