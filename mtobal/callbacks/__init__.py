"""Callbacks for Lightning."""

from mtobal.callbacks.conflict_monitor import ConflictMonitor
from mtobal.callbacks.multi_task_balancer import MultiTaskBalancer
from mtobal.callbacks.task_affinity import TaskAffinity
from mtobal.callbacks.task_table import TaskTable

__all__ = ["ConflictMonitor", "MultiTaskBalancer", "TaskAffinity", "TaskTable"]
