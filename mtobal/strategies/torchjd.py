"""Aggregators and weightings of TorchJD in the place of a gradient aggregation."""

from __future__ import annotations

import typing
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mtobal.errors import UsageError
from mtobal.ops import Jacobian
from mtobal.strategies.base import Aggregation, Direction, JacobianAggregation, Step
from mtobal.strategies.card import Card

# They take a K x K matrix like the Gramian, though TorchJD types it as any matrix: that of two samples.
_CROSS_GRAMIAN = {"MoDoWeighting", "SDMGradWeighting"}
_PLAIN = (Tensor, str, int, float, bool, tuple, torch.dtype, torch.device, type(None))


def is_torchjd(candidate: object) -> bool:
    """Whether an object is one of TorchJD's, or of a class derived from one of TorchJD's."""
    return any(owner.__module__.partition(".")[0] == "torchjd" for owner in type(candidate).__mro__)


def adapt(candidate: object) -> Aggregation:
    """Return the aggregation that runs an aggregator or a weighting of TorchJD.

    What needs the Gramian alone gets it alone. TorchJD must be installed, as it is where there is such an object.

    Examples
    --------
    >>> import torch, mtobal
    >>> from torchjd.aggregation import UPGrad
    >>> mtobal.aggregate(torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]), UPGrad())
    tensor([0.2929, 1.9004, 1.9004])
    """
    from torchjd.aggregation import Aggregator, GramianWeightedAggregator, WeightedAggregator, Weighting

    if isinstance(candidate, GramianWeightedAggregator):
        return GramianWeightingOfTorchJD(candidate, candidate.gramian_weighting)
    if isinstance(candidate, WeightedAggregator):
        return MatrixWeightingOfTorchJD(candidate, candidate.weighting)
    if isinstance(candidate, Aggregator):
        return AggregatorOfTorchJD(candidate)
    if isinstance(candidate, Weighting):
        of_gramian = _reads_gramian(candidate)
        return (GramianWeightingOfTorchJD if of_gramian else MatrixWeightingOfTorchJD)(candidate, candidate)
    raise UsageError(
        f"{type(candidate).__name__} of TorchJD is neither an aggregator nor a weighting: it fills no place of "
        "the step."
    )


def _reads_gramian(weighting: nn.Module) -> bool:
    """Whether a weighting takes the Gramian rather than the Jacobian."""
    from torchjd.aggregation import CRMOGMWeighting
    from torchjd.linalg import PSDMatrix

    if isinstance(weighting, CRMOGMWeighting):
        return _reads_gramian(weighting.weighting)
    owners = type(weighting).__mro__
    bases = [base for owner in owners for base in vars(owner).get("__orig_bases__", ())]
    declared = any(PSDMatrix in typing.get_args(base) for base in bases)  # as Weighting[PSDMatrix]
    return declared or type(weighting).__name__ in _CROSS_GRAMIAN


class _OfTorchJD(Aggregation):
    """What the three kinds have in common: the object, and its state in ours.

    Parameters
    ----------
    held : nn.Module
        The user's object. Its random draws come from torch's global generator.
    """

    card: ClassVar[Card] = Card(
        summary="Runs an aggregator or a weighting of TorchJD.",
        when="A method, or an option of one, that TorchJD has and this library has not.",
        paper="Quinton and Rey, Jacobian Descent for Multi-Objective Optimization, 2024, arXiv:2406.16232.",
        defaults_source="TorchJD; heads keep their own gradient.",
        state="that of the object",
        scale="own",
        heads="raw",
        degree=None,
    )

    def __init__(self, held: nn.Module) -> None:
        super().__init__()
        # No submodule: a new object does not load its own state_dict, and part of its state is not in there.
        self._held = (held,)

    def get_extra_state(self) -> dict[str, Any]:
        held = {path: _plain_state(module) for path, module in self._held[0].named_modules()}
        return {**super().get_extra_state(), "torchjd": held}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        for path, module in self._held[0].named_modules():
            for name, value in state["torchjd"][path].items():
                setattr(module, name, value.clone() if isinstance(value, Tensor) else value)


def _plain_state(module: nn.Module) -> dict[str, Any]:
    """Return the attributes and buffers of a module; nothing where one of them is no plain value.

    NashMTL keeps a cvxpy problem: without that, the rest is of no use, and it starts anew.
    """
    internal = vars(nn.Module()).keys()
    state = {name: value for name, value in vars(module).items() if name not in internal} | module._buffers
    return state if all(isinstance(value, _PLAIN) for value in state.values()) else {}


class GramianWeightingOfTorchJD(_OfTorchJD):
    """A weighting of the Gramian."""

    def __init__(self, held: nn.Module, weighting: nn.Module) -> None:
        super().__init__(held)
        self._weighting = (weighting,)

    def solve(self, gramian: Tensor, step: Step) -> Tensor:
        weights: Tensor = self._weighting[0](gramian)
        return weights.detach()


class MatrixWeightingOfTorchJD(_OfTorchJD, JacobianAggregation):
    """A weighting of the Jacobian."""

    def __init__(self, held: nn.Module, weighting: nn.Module) -> None:
        super().__init__(held)
        self._weighting = (weighting,)

    def direct(self, jacobian: Jacobian, step: Step) -> Direction:
        weights: Tensor = self._weighting[0](_matrix(jacobian)).detach()
        return Direction(jacobian.combine(weights), weights)


class AggregatorOfTorchJD(_OfTorchJD, JacobianAggregation):
    """An aggregator of the Jacobian."""

    def direct(self, jacobian: Jacobian, step: Step) -> Direction:
        vector: Tensor = self._held[0](_matrix(jacobian)).detach()
        parts = zip(torch.split(vector, [b.shape[1] for b in jacobian.blocks]), jacobian.blocks, strict=True)
        return Direction([part.to(block) for part, block in parts])


def _matrix(jacobian: Jacobian) -> Tensor:
    """Lay the blocks side by side, as one matrix of shape (K, P)."""
    first = jacobian.blocks[0]
    dtype = max((block.dtype for block in jacobian.blocks), key=lambda found: torch.finfo(found).bits)
    return torch.cat([block.to(first.device, dtype) for block in jacobian.blocks], dim=1)
