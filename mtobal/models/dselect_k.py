"""DSelect-k: a mixture of experts whose gates learn, by gradients alone, to select only k experts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtobal.errors import UsageError
from mtobal.models.base import Inputs
from mtobal.models.experts import GateInput, seen_by_gates, seen_size
from mtobal.models.mmoe import MMoE, draw_experts
from mtobal.tasks import Task

_EPSILON = 1e-6


def smooth_step(inputs: Tensor, width: float) -> Tensor:
    r"""Go from exactly 0 below ``-width / 2`` to exactly 1 above ``width / 2`` along a cubic.

    ``-2 t^3 / width^3 + 3 t / (2 width) + 1/2`` between; the derivative is continuous.

    Examples
    --------
    >>> smooth_step(torch.tensor([-1.0, 0.0, 0.25, 1.0]), 1.0)
    tensor([0.0000, 0.5000, 0.8438, 1.0000])
    """
    place = (inputs / width).clamp(-0.5, 0.5)
    return (1.5 - 2 * place.square()) * place + 0.5


class DSelectKGate(nn.Module):
    """Weights of experts of which, once trained, at most k are not zero.

    Each of k selectors writes the number of an expert in binary, its bits smooth steps of linear functions of the
    sample: expert j is selected by ``r_j = prod_b (bit_b if j has bit b else 1 - bit_b)``. A softmax weighs the
    selectors. As bits reach 0 and 1, a selector is left with a single expert. If the number of experts is no power
    of two, some codes name none: what they get is lost, the weights sum to less than one, and the penalty grows.

    Parameters
    ----------
    in_features : int
        Length of what the gate sees.
    experts : int
        From how many it selects; two or more.
    k : int
        Number of selectors.
    width : float
        Of the smooth step.
    entropy : float
        Weight of the entropy of the selectors in the penalty.
    """

    codes: Tensor

    def __init__(self, in_features: int, experts: int, k: int, width: float, entropy: float) -> None:
        super().__init__()
        bits = (experts - 1).bit_length()
        numbers = torch.arange(experts)
        codes = torch.stack([(numbers >> bit) & 1 for bit in range(bits)], dim=1).bool()
        self.register_buffer("codes", codes, persistent=False)
        self.bits = nn.Linear(in_features, k * bits)
        self.weights = nn.Linear(in_features, k)
        self.width = width
        self.entropy = entropy
        # Small, so that every selector starts between all experts, where the step has a slope.
        for parameter in self.bits.parameters():
            nn.init.uniform_(parameter, -width / 100, width / 100)
        nn.init.uniform_(self.weights.weight, -0.05, 0.05)

    def forward(self, seen: Tensor) -> Tensor:
        """Return weights (N, experts)."""
        shares = torch.softmax(self.weights(seen), dim=1)
        return torch.einsum("ni,nik->nk", shares, self.selectors(seen))

    def selectors(self, seen: Tensor) -> Tensor:
        """Return the weights (N, k, experts) of each selector."""
        written = smooth_step(self.bits(seen), self.width)
        bits = written.reshape(len(seen), -1, 1, self.codes.shape[1])
        return torch.where(self.codes, bits, 1 - bits).prod(dim=-1)

    def penalty(self, seen: Tensor) -> Tensor:
        """Return the mean over samples of the penalty.

        ``sum_i entropy H(r_i)``, and ``sum_i (1 / sum_j r_ij - 1)`` besides if the number of experts is no power
        of two. The -1 is not in the official code; it has no gradient, and the loss keeps its scale.
        """
        selected = self.selectors(seen)
        terms = self.entropy * -(selected * (selected + _EPSILON).log()).sum(dim=-1)
        experts = selected.shape[-1]
        if experts & (experts - 1):
            kept = selected.sum(dim=-1)
            terms = terms + (1 - kept) / (kept + _EPSILON)
        return terms.sum(dim=1).mean()


class DSelectK(MMoE):
    """A mixture of experts with selecting gates, whose penalty belongs to the loss of their task."""

    def penalty(self, inputs: Inputs) -> dict[str, Tensor]:
        """Return the penalty of the gate of each task."""
        penalties = {}
        for task, gate in self.gates.items():
            assert isinstance(gate, DSelectKGate)
            own = inputs.get(task) if isinstance(inputs, dict) else inputs
            if own is not None:
                assert isinstance(own, Tensor)
                penalties[task] = gate.penalty(seen_by_gates(own, self.gate_input))
        return penalties


def dselect_k(
    input_shape: Sequence[int],
    tasks: Sequence[Task],
    *,
    experts: int = 4,
    k: int = 2,
    width: float = 1.0,
    entropy: float = 1e-6,
    gate_input: GateInput = "pooled",
    base: str | None = None,
    base_options: Mapping[str, Any] | None = None,
) -> DSelectK:
    """Build a mixture of experts whose gates become sparse.

    Task t reads ``h_t = sum_j g_tj E_j(x)`` with ``g_tj = sum_i w_i r_ij``, of which at most k are not zero once
    the selectors ``r_i`` have decided; see `DSelectKGate`. The model's `penalty` belongs to the losses.

    Parameters
    ----------
    input_shape : sequence of int
        Shape of an input.
    tasks : sequence of Task
        The tasks.
    experts : int
        How many; two or more.
    k : int
        How many of them a task may use for a sample; 2 in the official code.
    width : float
        Of the smooth step, in which a selector is undecided; 1 in the official code.
    entropy : float
        Weight of the selectors' entropy in the penalty.
    gate_input : str
        What a gate sees of an image: averages over a grid of 4 by 4, or every pixel.
    base : str, optional
        The model whose encoder each expert is, and whose decoders the tasks have: any model of hard sharing but
        message_passing. By default mlp for vectors and hard_sharing for images.
    base_options : mapping, optional
        Options of that model.

    References
    ----------
    Hazimeh et al., "DSelect-k: Differentiable Selection in the Mixture of Experts with Applications to Multi-Task
    Learning", NeurIPS 2021.
    """
    if experts < max(2, k):
        raise UsageError(f"dselect_k: experts should be {max(2, k)} or more for k={k}, not {experts}.")
    if not (0 < width < math.inf and 0 <= entropy < math.inf):
        raise UsageError(
            f"dselect_k: width should be above 0 and entropy not below it, not {width} and {entropy}."
        )
    encoders, tail = draw_experts(input_shape, tasks, experts, base, base_options)
    in_features = seen_size(input_shape, gate_input)
    gates = {task.name: DSelectKGate(in_features, experts, k, width, entropy) for task in tasks}
    return DSelectK(encoders, gates, tail, gate_input)
