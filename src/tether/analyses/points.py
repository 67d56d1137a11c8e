"""What the analyses of a ledger give: pydantic models of exactly what a grid keeps."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

from tether.storage.atomic import finite

When = Literal["edited", "end", "restrained"]
Finite = Annotated[float | None, BeforeValidator(finite)]  # infinity and NaN become None


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SpectrumPoint(_Strict):
    """Singular values of one weight after some edits under some restraint; `m` is σ_max of the unedited weight."""

    edits: int
    restraint: str
    weight: str
    sigma_max: float
    sigma_min: float
    kappa: Finite
    update_sigma_max: float
    m: float


class ValuePoint(_Strict):
    """A fact's value (output of the last edited projection at the subject's last token) in the plane of the first two
    principal components."""

    edit: int
    when: When
    restraint: str
    x: float
    y: float


class Values(_Strict):
    """Figure 5 of the paper. `explained`: share of the variance in each of the two components. `shift`, by restraint:
    mean distance, in the full space, from the value when edited, relative to the mean norm of those values."""

    weight: str
    points: list[ValuePoint]
    explained: tuple[float, float]
    shift: dict[str, float]


class CopiesPoint(_Strict):
    """Section 4 of the paper: N copies of one update. σ̂_max of their sum and of one (δ_max), κ of the weight carrying
    them, and how much of the edit's own prompt is still said (`match_tokens` efficacy, percent)."""

    copies: int
    restraint: str
    update_sigma_max: float
    delta_max: float
    kappa: Finite
    perplexity: Finite
    efficacy: float | None


class BoundPoint(_Strict):
    """The perturbation bound for the keys of a ledger: `of` is "sum" (A = W₀, E = ΣΔW) or "edit" (A = W_{j−1},
    E = ΔW_j). `error_*` are actual relative errors over the keys; `bound_from_kappa` is None where γ ≤ 0 and theorem
    3.2 says nothing."""

    edits: int
    restraint: str
    weight: str
    of: Literal["sum", "edit"]
    gamma: float
    kappa: float
    kappa_hat: float
    error_median: float
    error_max: float
    bound: float
    bound_from_kappa: float | None
    holds: bool


class Difference(_Strict):
    """One paired comparison on the same items (`tether compare`): a row against its baseline row. `measure` is an
    ability's name, or `metric kind` of an editing metric (`compare locality`); `unit` percent or ppl (nats a token)."""

    measure: str
    unit: str
    row: tuple[int, str]
    baseline: tuple[int, str]
    value: Finite
    baseline_value: Finite
    mean: float
    stderr: float | None
    n: int
    p: float | None
    p_holm: float | None
    verdict: str


class Analyses(_Strict):
    """What was computed of a ledger besides its rows; empty where not asked for or not possible."""

    spectrum: list[SpectrumPoint] = []
    values: Values | None = None
    copies: list[CopiesPoint] = []
    bound: list[BoundPoint] = []
    differences: list[Difference] = []
