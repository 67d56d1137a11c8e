"""float64 where a device has it: Apple's has none."""

import torch
from torch import Tensor


def has_float64(device: torch.device) -> bool:
    """Whether tensors of the device can be float64."""
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return False
    return True


def double(matrix: Tensor) -> Tensor:
    """In float64, on its device; on the CPU where the device has no float64."""
    matrix = matrix.detach()
    try:
        return matrix.to(torch.float64)
    except TypeError:
        return matrix.cpu().to(torch.float64)
