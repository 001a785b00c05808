"""Gradient sign dropout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtobal.errors import UsageError
from mtobal.ops import Jacobian, random_sign_drop_of_blocks
from mtobal.strategies.base import Direction, JacobianAggregation, Step
from mtobal.strategies.card import Card
from mtobal.strategies.registry import register


@register("graddrop")
class GradDrop(JacobianAggregation):
    """Draw one sign for each coordinate, by its share in the gradients, and sum the entries of that sign.

    The signs are those of the gradients of the parameters.

    Parameters
    ----------
    leak : float
        The fraction of every gradient that passes whatever its sign, between 0 and 1; with 1 it is the plain sum.
    seed : int
        Seed of the draws, one for each coordinate and step.
    **common
        ``scale`` and ``heads``, as in every aggregation.

    See Also
    --------
    mtobal.ops.sign_drop : the formula.
    """

    card = Card(
        summary="Draws one sign for each coordinate, by its share in the gradients, and sums the entries of it.",
        when="Many tasks with noisy conflicts. The direction is random: its mean is the plain sum, and its "
        "variance asks for a smaller learning rate.",
        paper="Chen et al., Just Pick a Sign: Optimizing Deep Multitask Models with Gradient Sign Dropout, "
        "NeurIPS 2020, arXiv:2010.06808.",
        defaults_source="No leak, and signs of parameter gradients as in the code of CAGrad and in TorchJD; the "
        "paper takes signs at an activation. Heads keep their own gradient.",
        state="a random generator",
        scale="sum",
        heads="raw",
    )

    def __init__(self, leak: float = 0.0, seed: int = 0, **common: Any) -> None:
        super().__init__(**common)
        if not 0 <= leak <= 1:
            raise UsageError(f"graddrop: the leak must lie between 0 and 1, not {leak}.")
        self.leak = leak
        self.generator = torch.Generator().manual_seed(seed)

    def direct(self, jacobian: Jacobian, step: Step) -> Direction:
        assert self.generator is not None
        # The draws themselves are too many for the CPU where the gradients lie elsewhere.
        seed = int(torch.randint(2**63 - 1, (), generator=self.generator))
        kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for place, block in enumerate(jacobian.blocks):
            kinds.setdefault((block.device, block.dtype), []).append(place)
        found: dict[int, Tensor] = {}
        for (device, dtype), places in kinds.items():
            generator = torch.Generator(device).manual_seed(seed)
            leak = torch.full((len(step.active),), self.leak, device=device, dtype=dtype) if self.leak else None
            kept = random_sign_drop_of_blocks([jacobian.blocks[place] for place in places], generator, leak)
            found |= zip(places, kept, strict=True)
        return Direction([found[place] for place in range(len(found))])
