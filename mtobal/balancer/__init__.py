"""The balanced loss, for any training loop."""

from mtobal.balancer.balancer import Balancer, Closure, Losses
from mtobal.balancer.guard import Guard, Policy

__all__ = ["Balancer", "Closure", "Guard", "Losses", "Policy"]
