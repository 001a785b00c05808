"""Which parameters the tasks share, which belong to one task, and which no loss reaches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from mtobal.errors import UsageError, unknown_name
from mtobal.gradients.walk import leaf_of, nodes_below

OUTSIDE = "(outside the model)"

Shared = nn.Module | str | Iterable[nn.Module | nn.Parameter | str]


@dataclass(frozen=True)
class Partition:
    """Parameters by the tasks that reach them: three disjoint sets that cover all of them.

    Printing it shows the counts by module.

    Attributes
    ----------
    tasks : tuple of str
        The names of the tasks.
    parameters : mapping from str to Tensor
        Every trainable parameter by its name in the model.
    reach : tuple of frozenset of int
        For each parameter, in order, the indices of the tasks whose loss reaches it.
    shared_names : frozenset of str or None
        The parameters that the user declared shared; None means those that at least two tasks reach.
    """

    tasks: tuple[str, ...]
    parameters: Mapping[str, Tensor]
    reach: tuple[frozenset[int], ...]
    shared_names: frozenset[str] | None = None

    def __post_init__(self) -> None:
        if self.shared_names is None:
            return
        for name, tasks in zip(self.parameters, self.reach, strict=True):
            if len(tasks) > 1 and name not in self.shared_names:
                raise UsageError(
                    f"parameter {name!r} is reached by the losses of {self._names(tasks)} but is not among the "
                    "shared parameters that were given: add it, or leave shared=None to find them."
                )

    @property
    def shared(self) -> dict[str, Tensor]:
        """Parameters over which a gradient aggregation acts."""
        return {name: self.parameters[name] for name, owner in self._owners() if owner == "shared"}

    @property
    def own(self) -> dict[str, dict[str, Tensor]]:
        """Parameters that one task alone reaches, by task."""
        return {
            task: {name: self.parameters[name] for name, owner in self._owners() if owner == ("own", index)}
            for index, task in enumerate(self.tasks)
        }

    @property
    def unused(self) -> dict[str, Tensor]:
        """Parameters that no loss has reached so far."""
        return {name: self.parameters[name] for name, owner in self._owners() if owner == "unused"}

    @cached_property
    def shared_mask(self) -> tuple[bool, ...]:
        """Whether each parameter, in order, is shared."""
        return tuple(owner == "shared" for _, owner in self._owners())

    def joined(self, other: Partition) -> Partition:
        """Return the partition of all parameters of both, each reached by the tasks of both."""
        ours, theirs = (
            {id(p): (name, p, tasks) for (name, p), tasks in zip(part.parameters.items(), part.reach, strict=True)}
            for part in (self, other)
        )
        parameters: dict[str, Tensor] = {}
        reach: list[frozenset[int]] = []
        for key, (name, parameter, tasks) in (theirs | ours).items():
            unique = name if name not in parameters else f"{OUTSIDE}.{len(parameters)}"
            parameters[unique] = parameter
            reach.append(tasks | theirs[key][2] if key in theirs else tasks)
        return Partition(self.tasks, parameters, tuple(reach), self.shared_names)

    def extended(self, reach: Sequence[frozenset[int]]) -> Partition:
        """Return the partition in which parameters are also reached by the tasks of `reach`."""
        merged = tuple(old | new for old, new in zip(self.reach, reach, strict=True))
        return Partition(self.tasks, self.parameters, merged, self.shared_names)

    def restricted(self, names: Sequence[str]) -> tuple[Partition, list[int]]:
        """Return the partition of some of the shared parameters, and their places in this one.

        Parameters
        ----------
        names : sequence of str
            Dotted names of modules or parameters.

        Raises
        ------
        UsageError
            A name that no shared parameter has.
        """
        for name in names:
            if not any(known == name or known.startswith(f"{name}.") for known in self.shared):
                raise UsageError(f"layers: {name!r} names no shared parameter of the model.")
        places = [
            place
            for place, (known, is_shared) in enumerate(zip(self.parameters, self.shared_mask, strict=True))
            if is_shared and any(known == name or known.startswith(f"{name}.") for name in names)
        ]
        known_names = list(self.parameters)
        parameters = {known_names[place]: self.parameters[known_names[place]] for place in places}
        reach = tuple(self.reach[place] for place in places)
        return Partition(self.tasks, parameters, reach, frozenset(parameters)), places

    def _owners(self) -> Iterator[tuple[str, str | tuple[str, int]]]:
        for name, tasks in zip(self.parameters, self.reach, strict=True):
            declared = self.shared_names is not None and name in self.shared_names
            if len(tasks) > 1 or (declared and tasks):
                yield name, "shared"
            elif tasks:
                yield name, ("own", next(iter(tasks)))
            else:
                yield name, "unused"

    def _names(self, tasks: Iterable[int]) -> str:
        return " and ".join(repr(self.tasks[task]) for task in sorted(tasks))

    def __str__(self) -> str:
        labels = {
            name: self.tasks[int(owner[1])] if isinstance(owner, tuple) else owner
            for name, owner in self._owners()
        }
        rows = list(_by_module(labels, {name: p.numel() for name, p in self.parameters.items()}))
        columns = ["shared", *self.tasks, "unused"]
        totals = {column: sum(count for _, label, count in rows if label == column) for column in columns}
        width = max([len(name) for name, _, _ in rows] + [len("module")])
        owner_width = max(len(column) for column in columns)
        lines = [f"{'module':<{width}}  {'owner':<{owner_width}}  {'parameters':>12}"]
        lines += [f"{name:<{width}}  {label:<{owner_width}}  {count:>12,}" for name, label, count in rows]
        lines.append("total: " + ", ".join(f"{column} {totals[column]:,}" for column in columns))
        return "\n".join(lines)


def _by_module(labels: Mapping[str, str], counts: Mapping[str, int]) -> Iterator[tuple[str, str, int]]:
    """Join the parameters of a module into one line, as long as they have one owner."""

    def lines(prefix: str, names: list[str]) -> Iterator[tuple[str, str, int]]:
        owners = {labels[name] for name in names}
        if prefix and len(owners) == 1:
            yield prefix, owners.pop(), sum(counts[name] for name in names)
            return
        children: dict[str, list[str]] = {}
        for name in names:
            rest = name[len(prefix) + 1 :] if prefix else name
            children.setdefault(rest.split(".", 1)[0], []).append(name)
        for child, below in children.items():
            path = f"{prefix}.{child}" if prefix else child
            if below == [path]:
                yield path, labels[path], counts[path]
            else:
                yield from lines(path, below)

    yield from lines("", list(labels))


def reached_leaves(loss: Tensor, stop: Tensor | None = None) -> dict[int, Tensor]:
    """Walk the autograd graph from a loss to the leaves that its backward would reach, by their id.

    With `stop`, an intermediate tensor, only the ways that do not lead through it count.
    """
    leaves: dict[int, Tensor] = {}
    if loss.grad_fn is None:
        return {id(loss): loss} if loss.requires_grad else leaves
    pending = [loss.grad_fn]
    seen = set(pending) if stop is None or stop.grad_fn is None else {*pending, stop.grad_fn}
    while pending:
        node = pending.pop()
        leaf = leaf_of(node)
        if leaf is not None:
            leaves[id(leaf)] = leaf
        for below in nodes_below(node):
            if below not in seen:
                seen.add(below)
                pending.append(below)
    return leaves


def find_partition(
    losses: Sequence[Tensor | None],
    tasks: Sequence[str],
    model: nn.Module | None,
    shared: frozenset[str] | None = None,
) -> Partition:
    """Sort the trainable parameters by the losses that reach them.

    Parameters
    ----------
    losses : sequence of K scalar tensors with graph, or None
        None for a task that is missing from the batch.
    tasks : sequence of K str
        Their names.
    model : nn.Module or None
        Its trainable parameters are sorted, and beside them every other `nn.Parameter` that a loss reaches.
        Without a model, every leaf that a loss reaches counts as a parameter.
    shared : frozenset of str or None
        Names declared shared by the user.

    Returns
    -------
    Partition
    """
    parameters: dict[str, Tensor] = {}
    if model is not None:
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    leaves = [{} if loss is None else reached_leaves(loss) for loss in losses]
    known = {id(parameter) for parameter in parameters.values()}
    for found in leaves:
        for key, leaf in found.items():
            if key not in known and (model is None or isinstance(leaf, nn.Parameter)):
                known.add(key)
                position = str(len(parameters))
                parameters[position if model is None else f"{OUTSIDE}.{position}"] = leaf
    reach = tuple(
        frozenset(task for task, found in enumerate(leaves) if id(parameter) in found)
        for parameter in parameters.values()
    )
    return Partition(tuple(tasks), parameters, reach, shared)


def declared_shared(model: nn.Module, shared: Shared) -> frozenset[str]:
    """Resolve what the user declared shared to names of parameters.

    Parameters
    ----------
    model : nn.Module
    shared : module, dotted name, or iterable of modules, parameters or dotted names

    Raises
    ------
    UsageError
        An item that names no parameter of the model.
    """
    items = [shared] if isinstance(shared, (nn.Module, str)) else list(shared)
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    names: set[str] = set()
    for item in items:
        if isinstance(item, str):
            found = [name for name in by_id.values() if name == item or name.startswith(f"{item}.")]
        elif isinstance(item, nn.Module):
            found = [by_id[id(p)] for p in item.parameters() if id(p) in by_id]
        else:
            found = [by_id[id(item)]] if id(item) in by_id else []
        if not found and isinstance(item, str):
            known = {name.rsplit(".", depth)[0] for name in by_id.values() for depth in range(name.count(".") + 1)}
            raise unknown_name("shared module or parameter", item, known)
        if not found:
            raise UsageError(f"shared: a {type(item).__name__} holds no parameter of the model.")
        names.update(found)
    return frozenset(names)
