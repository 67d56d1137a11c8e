"""Every registered constraint, alone and chained, keeps the rules; the checks find one that does not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tether.algebra.lowrank import LowRank
from tether.constraints import checks
from tether.constraints.base import CONSTRAINTS, Chain, Constraint, Data, Weight, constrained, parse
from tether.constraints.checks import CHECKS, check_constraint
from tether.constraints.prune import Linear, Log, Nothing
from tether.constraints.rank import Rank
from tether.errors import BadSettingsError, TetherError
from tether.experiment.spec import _restraint as grid_restraint

EXAMPLES = [CONSTRAINTS[name].example for name in CONSTRAINTS]
CHAINS = [f"{one}+{two}" for one, two in zip(EXAMPLES, EXAMPLES[1:] + EXAMPLES[:1], strict=True)]
CHAINS += ["rank:64+log:1.2", "rank:2+log:1.2+linear:3+rank:1"]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("text", [*EXAMPLES, *CHAINS, "log:e", "log:1.0001", "rank:1", "rank:5"])
def test_every_constraint_keeps_every_rule(text: str, check: Callable[[Constraint], None]) -> None:
    check(parse(text))


parameters = st.floats(1.0001, 1e300)
constraints = st.one_of(
    parameters.map(Log), parameters.map(Linear), st.integers(1, 10**30).map(Rank), st.just(Log(math.e))
)


@given(st.lists(constraints, min_size=2, max_size=5))
def test_a_chain_is_read_back_as_it_is_written(parts: list[Constraint]) -> None:
    """Bit for bit, with parameters such as 1e+20, whose plus sign is not that of a chain."""
    chain = Chain(tuple(parts))
    assert parse(str(chain)) == chain and hash(parse(str(chain))) == hash(chain)
    assert parse(" + ".join(map(str, parts))) == chain
    assert [parse(str(part)) for part in parts] == parts
    assert Chain((parts[0], Nothing(), Chain(tuple(parts)))).parts == (parts[0], *parts)


@pytest.mark.parametrize("text", ["log:1e+20", "log:1e20"])
def test_an_exponent_is_no_chain(text: str) -> None:
    assert parse(text) == Log(1e20) and str(parse(text)) == "log:1e20"
    assert parse(f"{text}+rank:3") == Chain((Log(1e20), Rank(3)))
    assert parse("log:e+rank:3") == Chain((Log(math.e), Rank(3)))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.one_of(st.floats(1.01, 50).map(Log), st.floats(1.01, 50).map(Linear), st.integers(1, 8).map(Rank)),
             min_size=2, max_size=4),
    st.integers(1, 8), st.integers(1, 8), st.integers(0, 10), st.floats(0.1, 50), st.integers(0, 999),
)  # fmt: skip
def test_a_chain_is_its_parts_one_after_another(
    parts: list[Constraint], p: int, q: int, r: int, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    A, B = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((p, r), (r, q)))
    update, weight, chain = LowRank(scale * A, B), Weight((p, q), 1.0), Chain(tuple(parts))
    expected, before = update, chain.init(weight, Data())
    states = []
    for part, state in zip(parts, before, strict=True):
        expected, after = part.apply(expected, state)
        states.append(after)
    found, state = chain.apply(update, before)
    assert torch.equal(found.A, expected.A) and torch.equal(found.B, expected.B) and state == tuple(states)
    s, held = (torch.linalg.svdvals(one.to_dense()) for one in (update, found))
    assert bool((held <= s * (1 + 1e-9) + 1e-9).all()) and found.rank <= update.rank
    assert torch.equal(constrained(update, chain, before).A, found.A)


def test_none_is_left_out_of_a_chain() -> None:
    assert parse("none+log:1.2") == Log(1.2) == parse("log:1.2 + none")
    assert parse("none+none") == Nothing()
    for parts in ((), (Log(1.2),), (Log(1.2), Nothing())):
        with pytest.raises(BadSettingsError, match="is no chain: join two that act"):
            Chain(parts)


@pytest.mark.parametrize("text", [
    "", "log", "log:", "log:x", "log:1", "log:0.5", "log:inf", "log:nan", "log:-2", "linear", "linear:1",
    "linear:inf", "none:2", "sqrt:2", "1.2", "rank",
    "rank:0", "rank:-1", "rank:1.5", "log:1.2:3", "log:1.2+", "+", "log:1.2+rank:0", "log:1\n2", "rank:\n",
    "log:1.2+\nrank",
])  # fmt: skip
def test_a_bad_restraint_is_named_with_the_rule_on_one_line(text: str) -> None:
    with pytest.raises(BadSettingsError) as caught:
        parse(text)
    message = str(caught.value)
    assert "\n" not in message
    assert any(f"{name}:" in message or name in message for name in CONSTRAINTS), "the rule and the remedy"


@pytest.mark.parametrize("make", [
    lambda: Log(1.0), lambda: Log(math.nan), lambda: Log(math.inf), lambda: Linear(1.0), lambda: Rank(0),
])  # fmt: skip
def test_a_bad_parameter_is_refused_where_it_is_not_parsed_either(make: Callable[[], Constraint]) -> None:
    with pytest.raises(BadSettingsError):
        make()


def test_a_sum_that_is_not_finite_is_one_line() -> None:
    update = LowRank(torch.full((3, 1), math.nan), torch.ones(1, 4))
    for text in ("log:1.2", "rank:1+log:1.2", "log:1.2+rank:1"):
        with pytest.raises(TetherError, match="undo the last edit") as caught:
            constrained(update, parse(text), parse(text).init(Weight((3, 4), 1.0), Data()))
        assert "\n" not in str(caught.value)


def test_grids_take_chains_and_their_alpha() -> None:
    assert grid_restraint("log:1.20+ rank:64") == "log:1.2+rank:64"
    assert grid_restraint("log:alpha+rank:64") == "log:alpha+rank:64"


# --- another package's ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Halve(Constraint):
    """Half of the sum; its state counts how often."""

    name: ClassVar[str] = "halve"
    example: ClassVar[str] = "halve"

    @classmethod
    def read(cls, parameter: str) -> Halve:
        return cls()

    def init(self, weight: Weight, data: Data) -> int:
        return 0

    def apply(self, update: LowRank, state: int) -> tuple[LowRank, int]:
        return (LowRank(update.A / 2, update.B) if update.rank else update), state + 1

    def __str__(self) -> str:
        return "halve"


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Adds entry points to the registry, as installed packages do."""

    def add(**found: str) -> None:
        others = {name: EntryPoint(name, value, CONSTRAINTS.group) for name, value in found.items()}
        monkeypatch.setitem(CONSTRAINTS.__dict__, "_others", others)

    return add


def test_a_constraint_of_another_package(entry: Callable[..., None]) -> None:
    entry(halve=f"{__name__}:Halve", log="nowhere:Nothing")
    assert parse("halve") == Halve() and parse("halve+rank:1") == Chain((Halve(), Rank(1)))
    check_constraint(parse("halve"))
    check_constraint(parse("log:1.2+halve"))
    _, state = parse("halve+log:1.2").apply(LowRank(torch.ones(2, 1), torch.ones(1, 2)), (3, 1.0))
    assert state == (4, 1.0)


def test_one_that_is_no_constraint_is_named(entry: Callable[..., None]) -> None:
    entry(halve="builtins:int", other=f"{__name__}:Halve")
    for name in ("halve", "other"):
        with pytest.raises(TetherError, match=f"'{name}' of .* is no Constraint of that name: update or remove"):
            parse(name)


class _Broken(Halve):
    """Every way to break a rule, one at a time; `Halve` itself breaks none."""

    def __init__(self, apply: Any = None, text: str = "halve", acts: bool = True) -> None:
        object.__setattr__(self, "parts", (apply, text, acts))

    def apply(self, update: LowRank, state: Any) -> tuple[LowRank, Any]:
        change = self.parts[0]  # type: ignore[attr-defined]
        return super().apply(update, 0) if change is None else change(update, state)

    @property
    def acts(self) -> bool:
        return bool(self.parts[2])  # type: ignore[attr-defined]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Halve)

    def __hash__(self) -> int:
        return 0

    def __str__(self) -> str:
        return str(self.parts[1])  # type: ignore[attr-defined]


def _scaled(factor: float) -> Callable[[LowRank, Any], tuple[LowRank, Any]]:
    return lambda u, s: (LowRank(factor * u.A, u.B) if u.rank else u, s)


@pytest.mark.parametrize(("check", "broken"), [
    ("is_written_as_it_is_read", _Broken(text="log:1.2")),
    ("changes_nothing_given", _Broken(lambda u, s: (LowRank(u.A.mul_(0.5), u.B), s))),
    ("keeps_shape_and_dtype", _Broken(lambda u, s: (u.to(dtype=torch.float16), s))),
    ("keeps_shape_and_dtype", _Broken(lambda u, s: (LowRank(u.B.mT, u.A.mT), s))),
    ("keeps_shape_and_dtype", _Broken(_scaled(math.inf))),
    ("is_deterministic", _Broken(lambda u, s: (LowRank(torch.rand_like(u.A), u.B), s))),
    ("leaves_the_empty_sum", _Broken(lambda u, s: (LowRank(u.A / 2, u.B), s))),
    ("gives_back_what_it_does_not_change", _Broken(lambda u, s: (LowRank(u.A.clone(), u.B), s))),
    ("gives_back_what_it_does_not_change", _Broken(acts=False)),
    ("enlarges_no_singular_value", _Broken(_scaled(2.0))),
    ("goes_on_from_its_state", _Broken(lambda u, s: (u if s == 0 else LowRank(u.A.mT, u.A), 1))),
])  # fmt: skip
def test_the_checks_find_what_breaks_a_rule(entry: Callable[..., None], check: str, broken: Constraint) -> None:
    entry(halve=f"{__name__}:Halve")
    getattr(checks, check)(Halve())
    with pytest.raises(AssertionError, match=str(broken)):
        getattr(checks, check)(broken)
