"""The directions that keys hardly ever take: the null space of their second moment C, in the sense of AlphaEdit."""

import torch
from jaxtyping import Float
from torch import Tensor

from tether.errors import BadSettingsError


def null_space(C: Float[Tensor, "q q"], threshold: float) -> Float[Tensor, "q r"]:
    """U, the orthonormal eigenvectors of C = E[kkᵀ] whose eigenvalue is below `threshold` times the mean eigenvalue, so
    that P = UUᵀ projects on them; float64. C is not changed.

    So E‖Pk‖² < `threshold` · E‖k‖², whatever the unit of the keys. (AlphaEdit, https://arxiv.org/abs/2410.02355,
    compares the eigenvalues with 0.02 itself, which means another share of the keys in every model.) Costs one
    eigendecomposition, O(q³). Raises BadSettingsError where no eigenvalue is below.
    """
    values, vectors = torch.linalg.eigh(C.double())
    kept = int((values < threshold * values.mean()).sum())
    if kept:
        return vectors[:, :kept].contiguous()
    least = max(0.0, float(values[0] / values.mean()))
    raise BadSettingsError(
        f"null space {threshold:g}: no eigenvalue of the moments lies below {threshold:g} times their mean (the "
        f"smallest is {least:.2g} times it): give a larger number, as {max(2 * least, 2 * threshold):.1g}"
    )
