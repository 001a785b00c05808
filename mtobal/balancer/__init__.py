"""The balanced loss, for any training loop."""

from mtobal.balancer.again import Closure, Losses
from mtobal.balancer.balancer import Balancer
from mtobal.balancer.guard import Guard, Policy

__all__ = ["Balancer", "Closure", "Guard", "Losses", "Policy"]
