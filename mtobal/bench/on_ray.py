"""Runs as tasks of a Ray cluster, which trains a run again where its worker or machine is lost."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mtobal import data as data_sets
from mtobal.bench.launch import Event, Failed, Finished, Report, Setting, failed, perform
from mtobal.bench.plan import Run
from mtobal.data import MultiTaskData
from mtobal.errors import UsageError

if TYPE_CHECKING:
    from ray.util.queue import Queue

RETRIES = 3
"""How often Ray may lose the worker of a run before the run counts as failed."""


def on_ray(runs: Sequence[Run], setting: Setting, report: Report) -> None:
    """Train every run as a task of Ray, as many at a time as the cluster has room for.

    The cluster is the one that ``RAY_ADDRESS`` or a started Ray on this machine names, or else a new one of this
    machine alone. All its machines need mtobal, and the experiment's folder under the same path. The worker writes
    its checkpoint and result there itself; a task that Ray starts again goes on from that checkpoint.
    """
    try:
        import ray
        from ray.util.queue import Queue
    except ModuleNotFoundError as error:
        raise UsageError('--launcher ray needs ray, which is not installed: pip install "mtobal[ray]"') from error

    setting = replace(setting, folder=setting.folder.resolve())
    starts = not ray.is_initialized()
    if starts:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    tasks: dict[Any, Run] = {}
    queue = Queue(actor_options={"num_cpus": 0})
    try:
        train = ray.remote(**_needs(setting, ray.cluster_resources()))(_train)
        tasks = {train.remote(run, setting, queue): run for run in runs}
        while tasks:
            ended, _ = ray.wait(list(tasks), timeout=0.1)
            # What a run has put there before its end comes before its end here too.
            for event in queue.get_nowait_batch(queue.qsize()):
                report(event)
            for task in ended:
                run = tasks.pop(task)
                try:
                    outcome = ray.get(task)
                except ray.exceptions.RayError as error:
                    outcome = failed(run, setting, f"Ray gave it up: {' '.join(str(error).split())}")
                if isinstance(outcome, UsageError):
                    raise outcome
                report(outcome)
    finally:
        for task in tasks:
            ray.cancel(task, force=True)
        queue.shutdown(force=True)
        if starts:
            ray.shutdown()


def _needs(setting: Setting, resources: dict[str, float]) -> dict[str, Any]:
    accelerator = setting.recipe.accelerator
    on_gpu = accelerator == "cuda" or (accelerator == "auto" and resources.get("GPU", 0) > 0)
    return {"max_retries": RETRIES, "num_cpus": setting.recipe.threads, "num_gpus": int(on_gpu)}


def _train(run: Run, setting: Setting, queue: Queue) -> Finished | Failed | UsageError:
    outcome: list[Finished | Failed] = []

    def report(event: Event) -> None:
        if isinstance(event, (Finished, Failed)):
            outcome.append(event)
        else:
            queue.put(event)

    try:
        perform(run, setting, _data(json.dumps(setting.recipe.as_mapping()["data"])), report)
    except UsageError as error:
        return error
    return outcome[0]


@lru_cache(maxsize=1)
def _data(options: str) -> MultiTaskData:
    """Load the data once for all runs that a worker gets."""
    return data_sets.load(**json.loads(options))
