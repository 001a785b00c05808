"""The highest point, to first order, of a loss within a ball."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mtobal.gradients import Row

EPS = 1e-12


def ascent(gradient: Row, parameters: Sequence[Tensor], radius: float, *, adaptive: bool = False) -> Row:
    r"""Return the step of a given length along a gradient.

    That is ``radius a^2 g / (||a g|| + 1e-12)``, with ``a = 1``, or ``a = |w|`` if adaptive: then the ball is
    ``||eps / a|| <= radius``, which does not depend on the scale of the parameters.

    Parameters
    ----------
    gradient : mapping from int to Tensor
        By the place of the parameter; one norm is taken over all of it.
    parameters : sequence of Tensor
        All parameters, by their place.
    radius : float
        A negative one descends.
    adaptive : bool
        Whether the step is measured relative to the parameters.

    Returns
    -------
    dict from int to Tensor
        Zeros for a gradient of zeros; nothing for one that is not finite, so that nothing moves.

    References
    ----------
    Foret, Kleiner, Mobahi and Neyshabur, Sharpness-Aware Minimization for Efficiently Improving Generalization,
    ICLR 2021, arXiv:2010.01412; Kwon, Kim, Park and Choi, ASAM, ICML 2021, arXiv:2102.11600, for the adaptive
    form.

    Examples
    --------
    >>> import torch
    >>> ascent({0: torch.tensor([3.0, 4.0])}, [torch.zeros(2)], 0.5)
    {0: tensor([0.3000, 0.4000])}
    """
    steps = {
        place: slope * parameters[place].detach().abs() if adaptive else slope for place, slope in gradient.items()
    }
    length = norm(list(steps.values()))
    if not math.isfinite(length):
        return {}
    factor = radius / (length + EPS)
    for place, step in steps.items():
        steps[place] = step * factor * parameters[place].detach().abs() if adaptive else step * factor
    return steps


def norm(tensors: Sequence[Tensor]) -> float:
    """Return one norm over all tensors, in float32 or better."""
    if not tensors:
        return 0.0
    norms = [tensor_norm(tensor) for tensor in tensors]
    return float(torch.linalg.vector_norm(torch.stack([one.to(norms[0].device, torch.float64) for one in norms])))


def tensor_norm(tensor: Tensor) -> Tensor:
    """Return the norm of one tensor, in float32 or better, where the tensor is."""
    length: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
    return length
