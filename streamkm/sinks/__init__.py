"""Where results go: assignments onto a topic, events of clusters onto a topic and to webhooks."""

from streamkm.sinks.assignments import Assigner, AssignOptions, assign
from streamkm.sinks.base import Transactions
from streamkm.sinks.events import Message, Notifier, NotifyOptions, Target, TopicTarget
from streamkm.sinks.webhooks import WebhookTarget, verify

__all__ = [
    "AssignOptions",
    "Assigner",
    "Message",
    "Notifier",
    "NotifyOptions",
    "Target",
    "TopicTarget",
    "Transactions",
    "WebhookTarget",
    "assign",
    "verify",
]
