"""What the market knows of machines. Leases are known here by their opaque id alone."""

from agents.models.gpus import Gpu, GpuQuerySet, Reading
from agents.models.health import Alarm, GpuEvent, Outage, Policy
from agents.models.leases import Grant, MeterReading, Receipt
from agents.models.nodes import SLOTS_PER_NODE, EnrolmentToken, Node, NodeQuerySet, NodeTransition

__all__ = [
    "SLOTS_PER_NODE",
    "Alarm",
    "EnrolmentToken",
    "Gpu",
    "GpuEvent",
    "GpuQuerySet",
    "Grant",
    "MeterReading",
    "Node",
    "NodeQuerySet",
    "NodeTransition",
    "Outage",
    "Policy",
    "Reading",
    "Receipt",
]
