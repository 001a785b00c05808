"""The operations as Triton kernels, for gradients on a CUDA device.

Only this module can be imported without Triton; the operations import the others when gradients call for them.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

TYPES: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16)


def use_kernels(tensors: Iterable[Tensor]) -> bool:
    """Return whether an operation on these tensors goes to the kernels, and not to plain torch."""
    kinds = {(tensor.device, tensor.dtype) for tensor in tensors}
    return bool(kinds) and all(
        device.type == "cuda" and dtype in TYPES and _compiles_for(device) for device, dtype in kinds
    )


@cache
def _compiles_for(device: torch.device) -> bool:
    """Return whether Triton is there, and whether the device multiplies in tf32 as the Gramian does."""
    if find_spec("triton") is None or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)
