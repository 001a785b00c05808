"""Runs in worker processes of this machine: side by side, and each over as many of them as it has devices."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext

import torch.distributed as dist

from mtobal import data as data_sets
from mtobal.bench.launch import Event, Failed, Finished, Report, Setting, attend, failed, perform
from mtobal.bench.plan import Run
from mtobal.bench.records import Failure
from mtobal.bench.teams import FAREWELL, Meeting, Seat, from_first
from mtobal.errors import UsageError

LOG_LEVEL = "TORCH_CPP_LOG_LEVEL"
"""The variable that says how much torch's own C++ tells."""

LOOK = 1.0
"""Seconds between two looks at what the other machines say."""


def in_processes(
    jobs: int, runs: Sequence[Run], setting: Setting, report: Report, meeting: Meeting | None = None
) -> None:
    """Train so many runs at a time, each in a worker process, or in a team of them, which meet.

    A worker that dies takes its run with it, which counts as failed, and another takes its place. However this
    function ends, no worker outlives it, nor this process.
    """
    context = multiprocessing.get_context("spawn")  # a fork would share the parent's threads and CUDA context
    waiting = deque(runs)
    teams: list[_Team] = []
    try:
        while waiting or teams:
            while waiting and len(teams) < jobs:
                teams.append(_Team(context, setting, waiting.popleft(), meeting))
            several = setting.recipe.num_nodes > 1
            wait([connection for team in teams for connection in team.connections], LOOK if several else None)
            for team in list(teams):
                while (event := team.next_event()) is not None:
                    report(event)
                    if not isinstance(event, (Finished, Failed)):
                        continue
                    if waiting and team.is_sound:
                        team.train(waiting.popleft())
                        continue
                    team.end()
                    teams.remove(team)
                    break
    finally:
        for team in teams:
            team.kill()


def follow(setting: Setting, meeting: Meeting) -> None:
    """Take part, on a machine that is not the first, in every run that the first one trains, until it ends."""
    context = multiprocessing.get_context("spawn")
    number = 0
    workers: list[_Worker] = []
    try:
        while True:
            while not meeting.is_formed(number):
                if meeting.has_ended():
                    return
                time.sleep(LOOK)
            workers = [_Worker(context, setting, seat) for seat in meeting.seats(number)]
            while workers and not meeting.is_formed(number + 1):
                if meeting.has_ended():
                    return
                ready = wait([worker.connection for worker in workers], LOOK)
                for worker in [worker for worker in workers if worker.connection in ready]:
                    message = worker.receive()
                    if message is None and worker.ended_well():
                        workers.remove(worker)
                        continue
                    if isinstance(message, UsageError):
                        meeting.leave(str(message))
                        raise message
                    reason = message.reason if isinstance(message, Failure) else worker.cause_of_death()
                    meeting.tell_failure(number, reason)
                    while workers:
                        workers.pop().kill()
                    break
            while workers:
                workers.pop().kill()
            number += 1
    except dist.DistError as error:
        raise UsageError(
            "the command on node 0 ended before its time; start it on all nodes again, and it goes on."
        ) from error
    finally:
        for worker in workers:
            worker.kill()


class _Team:
    """The workers that train one run after the other together; without a meeting, a single one."""

    def __init__(self, context: SpawnContext, setting: Setting, run: Run, meeting: Meeting | None) -> None:
        self._setting = setting
        self._meeting = meeting
        seats: Sequence[Seat | None] = [None] if meeting is None else meeting.form_team()
        self._number = 0 if seats[0] is None else seats[0].team
        self._workers = [_Worker(context, setting, seat) for seat in seats]
        self.is_sound = True
        self.train(run)

    @property
    def connections(self) -> list[Connection]:
        """Where something can be heard of the workers."""
        return [worker.connection for worker in self._workers]

    def train(self, run: Run) -> None:
        """Give the first worker a run; it tells the others."""
        self.run = run
        self._workers[0].connection.send(run)

    def next_event(self) -> Event | None:
        """Return what has become of the run, if there is something new.

        Raises
        ------
        UsageError
            A worker met what would stop every run.
        """
        for worker in self._workers:
            if not worker.connection.poll():
                continue
            message = worker.receive()
            if message is None:
                return self._failed(worker.cause_of_death())
            if isinstance(message, UsageError):
                raise message
            if self._meeting is not None and isinstance(message, (Failed, Failure)):
                # What the others run into after the death of one of them is only its consequence.
                dead = [other for other in self._workers if other.has_died()]
                if dead:
                    return self._failed(dead[0].cause_of_death())
                if (reason := self._meeting.failure(self._number, wait=2 * LOOK)) is not None:
                    return self._failed(f"on another node, {reason}")
                failure = message.failure if isinstance(message, Failed) else message
                return self._failed(failure.reason, failure.traceback)
            assert not isinstance(message, Failure)
            return message
        reason = None if self._meeting is None else self._meeting.failure(self._number)
        return None if reason is None else self._failed(f"on another node, {reason}")

    def end(self) -> None:
        """Let the workers go once there is nothing left to train."""
        if not self.is_sound:
            self.kill()
            return
        self._workers[0].connection.send(None)
        for worker in self._workers:
            worker.end()

    def kill(self) -> None:
        """End the workers at once."""
        for worker in self._workers:
            worker.kill()

    def _failed(self, reason: str, trace: str = "") -> Failed:
        self.is_sound = False
        return failed(self.run, self._setting, reason, trace)


class _Worker:
    """A process of this machine, and the connection to it."""

    def __init__(self, context: SpawnContext, setting: Setting, seat: Seat | None) -> None:
        self.connection, its_end = context.Pipe()
        self._process = context.Process(target=_work, args=(its_end, setting, seat))
        with _without_advice():
            self._process.start()
        its_end.close()  # only the worker shall hold it, so that its death is seen here

    def receive(self) -> Event | Failure | UsageError | None:
        """Return what it says; None once it has died."""
        try:
            message: Event | Failure | UsageError = self.connection.recv()
        except (EOFError, ConnectionResetError):
            return None
        return message

    def has_died(self) -> bool:
        return not self._process.is_alive() and self._process.exitcode != 0

    def ended_well(self) -> bool:
        self._process.join(FAREWELL)
        return self._process.exitcode == 0

    def end(self) -> None:
        self._process.join(FAREWELL)
        self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()

    def cause_of_death(self) -> str:
        self._process.join()
        code = self._process.exitcode or 0
        if code < 0:
            return f"its process was killed by {signal.Signals(-code).name}"
        return f"its process ended with exit code {code}"


@contextmanager
def _without_advice() -> Iterator[None]:
    """Start processes in which DDP does not advise, once a run, against what few batches need."""
    level = os.environ.get(LOG_LEVEL)
    os.environ[LOG_LEVEL] = level or "ERROR"  # read once, when torch is imported
    try:
        yield
    finally:
        del os.environ[LOG_LEVEL]
        if level is not None:
            os.environ[LOG_LEVEL] = level


def _work(connection: Connection, setting: Setting, seat: Seat | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    is_first = seat is None or seat.rank == 0
    try:
        data = data_sets.load(**setting.recipe.data)
        if seat is not None:
            seat.take()
        while (run := from_first(connection.recv() if is_first else None)) is not None:
            if is_first:
                perform(run, setting, data, connection.send)
            elif (failure := attend(run, setting, data)) is not None:
                connection.send(failure)
                connection.recv()  # until the parent ends the whole team
        if seat is not None:
            dist.destroy_process_group()
    except UsageError as error:
        connection.send(error)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
