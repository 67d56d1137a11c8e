"""float64 on whatever device."""

from __future__ import annotations

import torch
from torch import Tensor


def double(matrix: Tensor) -> Tensor:
    """In float64, on its device; on the CPU where the device has no float64, as Apple's."""
    matrix = matrix.detach()
    try:
        return matrix.to(torch.float64)
    except TypeError:
        return matrix.cpu().to(torch.float64)
