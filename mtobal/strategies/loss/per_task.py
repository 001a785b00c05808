from mtobal.strategies.per_task import PerTask, check_per_task, per_task

__all__ = ["PerTask", "check_per_task", "per_task"]
