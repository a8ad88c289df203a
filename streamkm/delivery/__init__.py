"""Where results go: assignments onto a topic, events of clusters onto a topic and to webhooks."""

from streamkm.delivery.assignments import Assigner, AssignOptions, assign
from streamkm.delivery.base import Transactions
from streamkm.delivery.events import Message, Notifier, NotifyOptions, Target, TopicTarget
from streamkm.delivery.webhooks import WebhookTarget, verify

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
