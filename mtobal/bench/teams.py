"""The processes that train one run together, one for each device: where they meet, and what the first decides."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from mtobal.bench.recipe import Recipe
from mtobal.errors import UsageError

PATIENCE = timedelta(minutes=5)
"""How long one process waits for another to appear."""

FAREWELL = 10.0
"""Seconds that processes have to end by themselves."""

Value = TypeVar("Value")


def rank() -> int:
    """Return the number of this process in its team; 0 outside of any."""
    return dist.get_rank() if _in_team() else 0


def size() -> int:
    """Return how many processes train the run at hand."""
    return dist.get_world_size() if _in_team() else 1


def from_first(value: Value) -> Value:
    """Return what the first process of the team passes; all of them call it at the same point."""
    if not _in_team():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def on_cuda(recipe: Recipe) -> bool:
    """Whether this machine trains the runs of a recipe on CUDA devices."""
    return recipe.accelerator in ("auto", "cuda") and torch.cuda.is_available()


def _in_team() -> bool:
    return dist.is_available() and dist.is_initialized()


@dataclass(frozen=True)
class Node:
    """One of the machines of an experiment, and where the first of them is to be found."""

    number: int = 0
    address: str = "127.0.0.1"
    port: int = 0

    @classmethod
    def here(cls, recipe: Recipe) -> Node:
        """Read from the environment which machine this is.

        Raises
        ------
        UsageError
            There are several, and the environment does not say which.
        """
        if recipe.num_nodes == 1:
            return cls()
        try:
            node = cls(int(os.environ["NODE_RANK"]), os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        except (KeyError, ValueError) as error:
            node = cls(number=-1)
            cause: Exception | None = error
        else:
            cause = None
        if not 0 <= node.number < recipe.num_nodes:
            raise UsageError(
                f"--num-nodes {recipe.num_nodes} needs the same command on every node, with NODE_RANK from 0 to "
                f"{recipe.num_nodes - 1}, and with address and free port of node 0 in MASTER_ADDR and MASTER_PORT."
            ) from cause
        return node


@dataclass(frozen=True)
class Seat:
    """The place of one process in its team."""

    team: int
    local_rank: int
    node: Node
    recipe: Recipe

    @property
    def rank(self) -> int:
        """The number of the process in the team."""
        return self.node.number * self.recipe.devices + self.local_rank

    def take(self) -> None:
        """Make this process one of the team, and wait for the others."""
        # Lightning reads the first two, and sets the third, the threads of torch, where nobody else has.
        os.environ["NODE_RANK"] = str(self.node.number)
        os.environ["LOCAL_RANK"] = str(self.local_rank)
        os.environ["OMP_NUM_THREADS"] = str(self.recipe.threads)
        if on_cuda(self.recipe):
            torch.cuda.set_device(self.local_rank)
        meeting = TCPStore(self.node.address, self.node.port, timeout=PATIENCE)
        store = PrefixStore(f"team {self.team}", meeting)
        store.set(f"rank {self.rank}", "")
        try:
            store.wait([f"rank {rank}" for rank in range(self.recipe.ranks)], PATIENCE)
        except dist.DistError as error:
            raise UsageError(
                f"not all {self.recipe.ranks} processes came together within {PATIENCE.seconds} s: look whether "
                "the command still runs on every node."
            ) from error
        dist.init_process_group(
            "nccl" if on_cuda(self.recipe) else "gloo", store=store, rank=self.rank, world_size=self.recipe.ranks
        )


class Meeting:
    """Where the processes of an experiment find each other: a store that the command keeps on the first node.

    Teams are numbered in the order in which the first node forms them, and the other nodes follow.

    Attributes
    ----------
    node : Node
        This machine.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        node = Node.here(recipe)
        try:
            self._store = TCPStore(
                node.address, node.port, is_master=node.number == 0, wait_for_workers=False, timeout=PATIENCE
            )
        except dist.DistError as error:
            raise UsageError(
                f"node {node.number} cannot meet the others at {node.address}:{node.port}: start the command on "
                "node 0 too, and give it a port that is free."
            ) from error
        self.node = Node(node.number, node.address, self._store.port)
        self._teams = 0

    def seats(self, team: int) -> list[Seat]:
        """Return the places of a team on this machine."""
        return [Seat(team, local_rank, self.node, self.recipe) for local_rank in range(self.recipe.devices)]

    def form_team(self) -> list[Seat]:
        """Announce the next team, and return its places on this machine, which is the first."""
        team = self._teams
        self._teams += 1
        self._store.set(f"formed {team}", "")
        return self.seats(team)

    def is_formed(self, team: int) -> bool:
        """Whether the first node has announced a team."""
        return bool(self._store.check([f"formed {team}"]))

    def end(self) -> None:
        """Let the other nodes go, and wait until they have heard of it; the store ends with this process."""
        self._store.set("ended", "")
        deadline = time.monotonic() + FAREWELL
        while self._store.add("gone", 0) < self.recipe.num_nodes - 1 and time.monotonic() < deadline:
            time.sleep(0.1)

    def has_ended(self) -> bool:
        """Whether the first node has nothing left to train."""
        if not self._store.check(["ended"]):
            return False
        self._store.add("gone", 1)
        return True

    def tell_failure(self, team: int, reason: str) -> None:
        """Let the first node know that a process of the team on this machine failed."""
        self._store.set(f"failed {team}", reason)

    def leave(self, reason: str) -> None:
        """Let the first node know that this machine cannot go on."""
        self._store.add("gone", 1)
        self._store.set("left", f"node {self.node.number}: {reason}")

    def failure(self, team: int, wait: float = 0.0) -> str | None:
        """Return why a process of the team on another machine failed, if one did, or does within some seconds.

        Raises
        ------
        UsageError
            Another machine has left.
        """
        if self.recipe.num_nodes == 1:
            return None
        if self._store.check(["left"]):
            raise UsageError(self._store.get("left").decode())
        key = f"failed {team}"
        deadline = time.monotonic() + wait
        while not (found := self._store.check([key])) and time.monotonic() < deadline:
            time.sleep(0.1)
        return self._store.get(key).decode() if found else None
