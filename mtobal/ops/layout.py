"""How gradients of one parameter lie in memory."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def alike(gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return the gradients of one parameter with the entries of all in one and the same order in memory.

    They are copied only where they are not so already: those of a channels-last convolution are.
    """
    present = [gradient for gradient in gradients if gradient is not None]
    if all(gradient.stride() == present[0].stride() for gradient in present) and _dense(present[0]):
        return list(gradients)
    return [None if gradient is None else gradient.contiguous() for gradient in gradients]


def flat(tensor: Tensor) -> Tensor:
    """View a tensor that `alike` has returned in the order of memory.

    Examples
    --------
    >>> import torch
    >>> flat(torch.tensor([[1, 2], [3, 4]]).T)
    tensor([1, 2, 3, 4])
    """
    return tensor.as_strided((tensor.numel(),), (1,))


def _dense(tensor: Tensor) -> bool:
    """Return whether the entries lie side by side, in whatever order of the dimensions."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
