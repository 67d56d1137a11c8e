"""Low-rank updates A·B: sums, singular values and truncation without ever forming the p×q matrix."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LowRank:
    """The matrix A·B, with A: p×r and B: r×q (floating, one device). Immutable: every operation returns a new value.

    `LowRank(A, B) + other` stacks the factors, so the rank bound r grows by the other's.
    """

    A: Float[Tensor, "p r"]
    B: Float[Tensor, "r q"]

    def __post_init__(self) -> None:
        if self.A.ndim != 2 or self.B.ndim != 2 or self.A.shape[1] != self.B.shape[0]:
            shapes = f"{tuple(self.A.shape)} and {tuple(self.B.shape)}"
            raise ValueError(f"factors {shapes} do not chain: A must be p×r and B r×q")

    @classmethod
    def zeros(cls, p: int, q: int, *, dtype: torch.dtype = torch.float32) -> LowRank:
        """The zero p×q matrix on the CPU, of rank bound 0."""
        return cls(torch.zeros(p, 0, dtype=dtype), torch.zeros(0, q, dtype=dtype))

    @classmethod
    def sum(cls, updates: Iterable[LowRank]) -> LowRank:
        """The sum of at least one update of one shape, by stacking factors in the order given."""
        parts = list(updates)
        if not parts:
            raise ValueError("the sum of no updates has no shape: start from LowRank.zeros(p, q)")
        return cls(torch.cat([u.A for u in parts], dim=1), torch.cat([u.B for u in parts], dim=0))

    @classmethod
    def of_dense(cls, dense: Float[Tensor, "p q"]) -> LowRank:
        """A whole matrix as factors, exactly: I·D or D·I, min(p, q) columns. D is kept, not copied."""
        p, q = dense.shape
        eye = torch.eye(min(p, q), dtype=dense.dtype, device=dense.device)
        return cls(eye, dense) if p <= q else cls(dense, eye)

    @property
    def shape(self) -> tuple[int, int]:
        return self.A.shape[0], self.B.shape[1]

    @property
    def rank(self) -> int:
        """The number of columns of A: an upper bound of the numerical rank."""
        return self.A.shape[1]

    def __add__(self, other: LowRank) -> LowRank:
        if not isinstance(other, LowRank):
            return NotImplemented
        if self.shape != other.shape:
            raise ValueError(f"cannot add updates of shapes {self.shape} and {other.shape}")
        return LowRank.sum([self, other])

    def __neg__(self) -> LowRank:
        return LowRank(-self.A, self.B)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> LowRank:
        return LowRank(self.A.to(device=device, dtype=dtype), self.B.to(device=device, dtype=dtype))

    def to_dense(self) -> Float[Tensor, "p q"]:
        """A·B in the factors' dtype."""
        return self.A @ self.B

    def svd(self) -> tuple[Float[Tensor, "p k"], Float[Tensor, " k"], Float[Tensor, "k q"]]:
        """û, σ̂ (descending), v̂ᵀ of A·B in float64, k = min(r, p, q): QR of both factors and an r×r SVD, O((p+q)r²).
        Computed at every call: û and v̂ᵀ are large."""
        A, B = self.A.double(), self.B.double()
        if self.rank >= min(self.shape):
            return torch.linalg.svd(A @ B, full_matrices=False)
        q_left, r_left = torch.linalg.qr(A)
        q_right, r_right = torch.linalg.qr(B.mT)
        u, s, vh = torch.linalg.svd(r_left @ r_right.mT)
        return q_left @ u, s, vh @ q_right.mT

    def singular_values(self) -> Float[Tensor, " k"]:
        """σ̂ of A·B, descending, float64; û and v̂ᵀ are not formed. Kept after the first call."""
        return self._singular_values

    @cached_property
    def _singular_values(self) -> Tensor:
        A, B = self.A.double(), self.B.double()
        if self.rank >= min(self.shape):
            return torch.linalg.svdvals(A @ B)
        r_left, r_right = (torch.linalg.qr(factor, mode="r").R for factor in (A, B.mT))
        return torch.linalg.svdvals(r_left @ r_right.mT)

    def norm(self) -> float:
        """Frobenius norm, from the two r×r Gram matrices."""
        A, B = self.A.double(), self.B.double()
        return float(((A.mT @ A) * (B @ B.mT)).sum().clamp_min(0).sqrt())

    def truncate(self, rank: int | None = None, rtol: float | None = None) -> LowRank:
        """The closest update of at most `rank`, or without the singular values ≤ rtol·σ̂_max; factors û·√σ̂ and √σ̂·v̂ᵀ
        in this update's dtype. With neither argument: the numerical rank (rtol = the dtype's epsilon × max(p, q)).
        """
        u, s, vh = self.svd()
        if rank is None:
            if rtol is None:
                rtol = torch.finfo(self.A.dtype).eps * max(self.shape)
            top = float(s[0]) if s.numel() else 0.0
            rank = int((s > rtol * top).sum()) if top > 0 else 0
        root = s[:rank].sqrt()
        return LowRank(u[:, :rank] * root, root[:, None] * vh[:rank]).to(dtype=self.A.dtype)

    def compacted(self) -> LowRank:
        """The same matrix, exactly to rounding, in at most min(p, q) columns: where there are more, I·(A·B) or (A·B)·I,
        with the product taken in float64."""
        p, q = self.shape
        if self.rank <= min(p, q):
            return self
        return LowRank.of_dense((self.A.double() @ self.B.double()).to(self.A.dtype))
