"""Callbacks for Lightning."""

from mtobal.callbacks.multi_task_balancer import MultiTaskBalancer

__all__ = ["MultiTaskBalancer"]
