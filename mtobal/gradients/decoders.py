"""The first half of every engine: each loss runs backward through its own decoder, once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from mtobal.errors import UsageError
from mtobal.gradients.graph import Graph, differentiate, read_graph, sent
from mtobal.gradients.partition import Partition
from mtobal.gradients.rows import combine
from mtobal.gradients.task_gradients import Piece, TaskGradients
from mtobal.gradients.walk import Edge, leaf_of


@dataclass
class Decoded:
    """Where a step stands when all decoders have run backward and the trunk, which tasks share, has not.

    Attributes
    ----------
    graph : Graph
        Of the losses.
    partition : Partition
        Which task reaches which parameter, this step included.
    arrivals : list of K mappings from edge to Tensor
        The cotangents with which each task enters the trunk.
    rows : list of K mappings from int to Tensor
        The gradients of each task so far, by the place of the parameter.
    trunk : list of int
        The parameters that the trunk uses, by their place.
    scale : float
        The factor on all gradients.
    """

    graph: Graph
    partition: Partition
    arrivals: list[dict[Edge, Tensor]]
    rows: list[dict[int, Tensor]]
    trunk: list[int]
    scale: float

    @cached_property
    def parameters(self) -> list[Tensor]:
        """All parameters, by their place."""
        return list(self.partition.parameters.values())

    def descend(
        self, inputs: Sequence[Tensor | Edge], receive: Callable[[int, Sequence[Tensor | None]], None]
    ) -> None:
        """Run one backward pass a task through the trunk.

        Parameters
        ----------
        inputs : sequence of tensors or edges
            Where gradients are wanted.
        receive : callable
            Gets the number of the task and its gradients, and decides what is kept of them.
        """
        entering = [task for task, arrivals in enumerate(self.arrivals) if arrivals]
        for task in entering:
            arrivals, self.arrivals[task] = self.arrivals[task], {}
            found = differentiate(
                list(arrivals), list(arrivals.values()), inputs, retain_graph=task != entering[-1]
            )
            receive(task, found)

    def add(self, task: int, places: Sequence[int], gradients: Sequence[Tensor | None]) -> None:
        """Take note of gradients of a task; a parameter that its decoder uses too has some already."""
        row = self.rows[task]
        for place, gradient in zip(places, gradients, strict=True):
            if gradient is not None:
                row[place] = row[place] + gradient if place in row else gradient

    def look(self, places: Sequence[int], partition: Partition) -> TaskGradients:
        """Return the gradients with respect to some shared parameters; all others can still be had afterwards.

        Parameters
        ----------
        places : sequence of int
        partition : Partition
            Of these parameters alone.
        """
        rows: list[dict[int, Tensor]] = []
        for arrivals, known in zip(self.arrivals, self.rows, strict=True):
            found = self.differentiate(arrivals, places, retain_graph=True)
            row: dict[int, Tensor] = {}
            for number, (place, gradient) in enumerate(zip(places, found, strict=True)):
                parts = [part for part in (gradient, known.get(place)) if part is not None]
                if parts:
                    row[number] = parts[0] if len(parts) == 1 else parts[0] + parts[1]
            rows.append(row)
        return TaskGradients.of_rows(partition, rows, self.scale)

    def combine(self, weights: Sequence[float], heads: Sequence[float]) -> list[Tensor | None]:
        """Return the final gradient of every parameter from one backward pass for all tasks; can be done once.

        Parameters
        ----------
        weights, heads : sequence of K floats
            On the gradients of shared and of task-own parameters.
        """
        shared = [place for place in self.trunk if self.partition.shared_mask[place]]
        for task, arrivals in enumerate(self.arrivals):
            # A loss that is all trunk brings its decoder along, whose weights are others.
            own = [
                place
                for place in self.trunk
                if place not in shared and self.graph.reach(self.parameters[place]) == [task]
            ]
            found = self.differentiate(arrivals, own, retain_graph=True)
            self.add(task, own, found)
        edges = dict.fromkeys(edge for arrivals in self.arrivals for edge in arrivals)
        together = {edge: combine([arrivals.get(edge) for arrivals in self.arrivals], weights) for edge in edges}
        arrived = {edge: cotangent for edge, cotangent in together.items() if cotangent is not None}
        below = self.differentiate(arrived, shared, retain_graph=False)
        gradients = self.finish().combine(weights, heads)
        for place, gradient in zip(shared, below, strict=True):
            known = gradients[place]
            gradients[place] = gradient if known is None or gradient is None else known + gradient
        return gradients

    def differentiate(
        self, arrivals: Mapping[Edge, Tensor], places: Sequence[int], *, retain_graph: bool
    ) -> list[Tensor | None]:
        """Run one backward pass from where cotangents arrive to the parameters at these places."""
        parameters = [self.parameters[place] for place in places]
        return differentiate(list(arrivals), list(arrivals.values()), parameters, retain_graph=retain_graph)

    def finish(self, pieces: Sequence[Piece] = ()) -> TaskGradients:
        """Sort the gradients by owner; `pieces` hold those that were not added as rows."""
        rows, self.rows = self.rows, []
        return TaskGradients.of_rows(self.partition, rows, self.scale, pieces)


def run_decoders(losses: list[Tensor], active: Sequence[int], partition: Partition, cotangent: Tensor) -> Decoded:
    """Read the graph, and differentiate each loss down to where it enters the trunk.

    Parameters
    ----------
    losses : list of K scalar tensors with graph
        Emptied, and what the decoders saved is freed as soon as they have run.
    active : sequence of K int
        The number of each loss's task in the partition.
    partition : Partition
        Of all parameters, task-own ones included.
    cotangent : scalar tensor
        Factor on every gradient: the gradient that arrives at the balanced loss, which holds the loss scale of
        mixed precision and the division by accumulated batches.
    """
    graph = read_graph(losses)
    parameters = list(partition.parameters.values())
    _check_complete(graph, parameters)
    trunk: list[int] = []
    own: list[list[int]] = [[] for _ in losses]
    reach: list[frozenset[int]] = []
    entries = graph.entries()
    # A backward pass does not stop at one place that it is asked for when another lies below. So a loss that
    # enters the trunk at several depths, or that uses one of its parameters on another way, is all trunk.
    nested = {edges: graph.are_nested(edges) for edges in set(map(frozenset, entries))}
    whole = {task for task, edges in enumerate(entries) if graph.enters_at_root(task) or nested[frozenset(edges)]}
    for place, parameter in enumerate(parameters):
        tasks = graph.reach(parameter)
        reach.append(frozenset(active[task] for task in tasks))
        if not tasks:
            continue
        users = graph.users(parameter)
        decoders = {user for user in users if user is not None}
        if None in users:
            trunk.append(place)
            whole |= decoders
        else:
            for task in decoders:
                own[task].append(place)
    trunk = sorted({*trunk, *(place for task in whole for place in own[task])})
    arrivals: list[dict[Edge, Tensor]] = []
    rows: list[dict[int, Tensor]] = []
    for task, loss in enumerate(losses):
        seed = cotangent.to(loss.device, loss.dtype).reshape(loss.shape)
        if task in whole:
            arrivals.append({graph.roots[task]: seed})
            rows.append({})
            continue
        inputs: list[Tensor | Edge] = [*(parameters[place] for place in own[task]), *entries[task]]
        with sent(entries[task]) as arrived:
            found = differentiate([loss], [seed], inputs, retain_graph=graph.has_sink)
        arrivals.append({edge: arrived[edge] for edge in entries[task] if edge in arrived})
        gradients = zip(own[task], found, strict=False)
        rows.append({place: gradient for place, gradient in gradients if gradient is not None})
    losses.clear()
    widened = all(new <= old for new, old in zip(reach, partition.reach, strict=True))
    known = partition if widened else partition.extended(reach)
    return Decoded(graph, known, arrivals, rows, trunk, float(cotangent) or 1.0)


def _check_complete(graph: Graph, parameters: Sequence[Tensor]) -> None:
    """Make sure that no parameter goes without its gradient.

    Raises
    ------
    UsageError
        A task has not reached a parameter outside of the model when its graph was searched for these.
    """
    known = {id(parameter) for parameter in parameters}
    for leaf in map(leaf_of, graph.leaves.values()):
        if id(leaf) not in known and isinstance(leaf, nn.Parameter):
            raise UsageError(
                f"a loss reaches a parameter of shape {tuple(leaf.shape)} outside of the model that it did not "
                "reach before: pass the Balancer a model that holds all parameters, such as an nn.ModuleList."
            )
