"""What cannot be taken out of a joint solution is named on one line."""

from __future__ import annotations

import pytest
import torch

from tether.algebra.joint_solve import Solution
from tether.errors import TetherError


def test_facts_that_cannot_be_taken_out_are_one_line() -> None:
    singular = Solution(torch.ones(3, 4, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64))
    assert singular.without([]) is singular
    with pytest.raises(TetherError, match="2 of 3 facts of one solve cannot be taken out") as caught:
        singular.without([0, 2])
    assert "\n" not in str(caught.value)
