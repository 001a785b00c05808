"""Gradients with respect to the shared representation: the encoder runs backward once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from mtobal.errors import UsageError
from mtobal.gradients.graph import differentiate, read_graph, sent
from mtobal.gradients.partition import Partition, reached_leaves
from mtobal.gradients.rows import Rows


@dataclass(frozen=True)
class Cut:
    """The parameters below and above the representation, by their place among all parameters."""

    encoder: tuple[int, ...]
    heads: tuple[int, ...]


def cut_at(representation: Tensor, losses: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> Cut:
    """Find out which parameters lie below the representation, and that no loss reaches these around it.

    Parameters
    ----------
    representation : Tensor
        The output of the shared encoder, with its graph.
    losses : mapping from task to scalar tensor
    parameters : mapping from name to leaf tensor

    Raises
    ------
    UsageError
        Nothing lies below the representation, or a loss reaches a parameter of the encoder on another way.
    """
    below = reached_leaves(representation)
    encoder = {place: name for place, (name, p) in enumerate(parameters.items()) if id(p) in below}
    if not encoder:
        raise UsageError("no parameter lies below the representation that was given: was it detached?")
    for task, loss in losses.items():
        around = reached_leaves(loss, stop=representation)
        for name in encoder.values():
            if id(parameters[name]) in around:
                raise UsageError(
                    f"the loss of task {task!r} reaches {name!r} around the representation: give one that "
                    "is all that the decoders read of the encoder."
                )
    return Cut(tuple(encoder), tuple(place for place in range(len(parameters)) if place not in encoder))


class RepresentationGradients:
    """Gradients of K losses with respect to the representation and to the parameters above it.

    Parameters
    ----------
    losses : list of K scalar tensors with graph
        Emptied.
    representation : list of one tensor
        Emptied when the encoder has run backward.
    partition : Partition
    cut : Cut
        What `cut_at` found.
    cotangent : scalar tensor
        Factor on every gradient.
    """

    def __init__(
        self,
        losses: list[Tensor],
        representation: list[Tensor],
        partition: Partition,
        cut: Cut,
        cotangent: Tensor,
    ) -> None:
        self.partition = partition
        self.scale = float(cotangent) or 1.0
        self._cut, self._representation = cut, representation
        self._parameters = list(partition.parameters.values())
        inputs = [*representation, *(self._parameters[place] for place in cut.heads)]
        arrived: list[list[Tensor | None]] = []
        self._heads = Rows(cut.heads, [])
        edge = get_gradient_edge(representation[0])
        place = edge.node, edge.output_nr
        readers = read_graph(losses).readers(place)
        for task, loss in enumerate(losses):
            seed = cotangent.to(loss.device, loss.dtype).reshape(loss.shape)
            with sent({place: readers}) as found:
                # Decoders may have layers in common, whose graph the next pass needs.
                row = differentiate([loss], [seed], inputs, retain_graph=task < len(losses) - 1)
            arrived.append([found.get(place)])
            self._heads.rows.append(row[1:])
        losses.clear()
        self._arrived = Rows((0,), arrived)

    def gramian(self) -> Tensor:
        """Return the inner products of the gradients of the representation, without the factor."""
        return self._arrived.gramian() / self.scale**2

    def combine(self, weights: Sequence[float], heads: Sequence[float]) -> list[Tensor | None]:
        """Return the final gradient of every parameter, from one backward pass through the encoder.

        Parameters
        ----------
        weights, heads : sequence of K floats
            On the gradients of the encoder and of all other parameters.
        """
        gradients: list[Tensor | None] = [None] * len(self._parameters)
        for place, gradient in zip(self._cut.heads, self._heads.combine(heads), strict=True):
            gradients[place] = gradient
        [combined] = self._arrived.combine(weights)
        if combined is not None:
            encoder = [self._parameters[place] for place in self._cut.encoder]
            below = differentiate(self._representation, [combined], encoder, retain_graph=False)
            for place, gradient in zip(self._cut.encoder, below, strict=True):
                gradients[place] = gradient
        self._representation.clear()
        return gradients
