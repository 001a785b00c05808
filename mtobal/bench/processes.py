"""Runs side by side, in worker processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext

from mtobal import data as data_sets
from mtobal.bench.launch import Failed, Finished, Report, Setting, failed, perform
from mtobal.bench.plan import Run
from mtobal.errors import UsageError


def in_processes(jobs: int, runs: Sequence[Run], setting: Setting, report: Report) -> None:
    """Train so many runs at a time, each in a worker process.

    A worker that dies takes its run with it, which counts as failed, and another takes its place. However this
    function ends, no worker outlives it, nor this process.
    """
    context = multiprocessing.get_context("spawn")  # a fork would share the parent's threads and CUDA context
    waiting = deque(runs)
    workers: dict[Connection, _Worker] = {}
    try:
        while waiting or workers:
            while waiting and len(workers) < jobs:
                worker = _Worker(context, setting, waiting.popleft())
                workers[worker.connection] = worker
            for connection in wait(list(workers)):
                assert isinstance(connection, Connection)
                worker = workers[connection]
                try:
                    event = connection.recv()
                except (EOFError, ConnectionResetError):
                    report(failed(worker.run, setting, worker.cause_of_death()))
                    del workers[connection]
                    continue
                if isinstance(event, UsageError):
                    raise event
                report(event)
                if not isinstance(event, (Finished, Failed)):
                    continue
                if waiting:
                    worker.train(waiting.popleft())
                else:
                    worker.end()
                    del workers[connection]
    finally:
        for worker in workers.values():
            worker.kill()


class _Worker:
    """A process that trains one run after the other."""

    def __init__(self, context: SpawnContext, setting: Setting, run: Run) -> None:
        self.connection, its_end = context.Pipe()
        self._process = context.Process(target=_work, args=(its_end, setting))
        self._process.start()
        its_end.close()  # only the worker shall hold it, so that its death is seen here
        self.train(run)

    def train(self, run: Run) -> None:
        self.run = run
        self.connection.send(run)

    def end(self) -> None:
        self.connection.send(None)
        self._leave()

    def kill(self) -> None:
        self._process.kill()
        self._leave()

    def cause_of_death(self) -> str:
        self._leave()
        code = self._process.exitcode or 0
        if code < 0:
            return f"its process was killed by {signal.Signals(-code).name}"
        return f"its process ended with exit code {code}"

    def _leave(self) -> None:
        self._process.join()
        self.connection.close()


def _work(connection: Connection, setting: Setting) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        data = data_sets.load(**setting.recipe.data)
        while (run := connection.recv()) is not None:
            perform(run, setting, data, connection.send)
    except UsageError as error:
        connection.send(error)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
