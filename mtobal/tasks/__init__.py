"""Tasks: each joins a loss, metrics and the size of its head."""

from mtobal.tasks.classification import Classification
from mtobal.tasks.task import Task

__all__ = ["Classification", "Task"]
