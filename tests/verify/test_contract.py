"""Every promise of the contract, for every method in all its modes, on networks of every family and kind of attention.

Nothing here names a method: a new file in `methods/` is covered as it stands. `contract_cases` says what `make test`
tries; the rest of the matrix has the marker `full`.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import pytest
import torch
from contract_cases import ABOUT_THE_MACHINERY, MEETS, is_in_make_test, matrix
from pydantic import Field

from peftbench.errors import UserError
from peftbench.method import registry
from peftbench.method.base import Method
from peftbench.method.edit import Edit
from peftbench.method.registry import discover
from peftbench.verify.contract import PROMISES, Case, Promise, check, skip_reason, variants
from peftbench.verify.contract import case as case_module
from peftbench.verify.contract.networks import FAMILIES, NETWORKS


def parameter(case: Case, promise: Promise) -> Any:
    marks = [] if is_in_make_test(case, promise) else [pytest.mark.full]
    if case.hyper or case.backbone != "tiny-encoder":  # `make test-fast` tries the defaults on one network
        marks.append(pytest.mark.slow)
    return pytest.param(case, promise, marks=marks, id=f"{case}: {promise.__name__.replace('_', ' ')}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The contract's cases. Where the marker `full` is left out they are not made at all: they are ten thousand."""
    if {"case", "promise"} <= set(metafunc.fixturenames):
        all_of_it = "not full" not in metafunc.config.getoption("markexpr")
        tried = [pair for pair in matrix() if all_of_it or is_in_make_test(*pair)]
        metafunc.parametrize(("case", "promise"), [parameter(case, promise) for case, promise in tried])


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
def test_a_method_keeps_its_promise(case: Case, promise: Promise, excuses: dict[int, str | None]) -> None:
    if id(case) not in excuses:
        excuses[id(case)] = skip_reason(case)
    why = excuses[id(case)]
    if why is not None:
        pytest.skip(f"not applicable: {why}")
    promise(case)


@pytest.fixture(scope="module")
def excuses() -> dict[int, str | None]:
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("cls", discover().values(), ids=lambda cls: cls.name)
def test_a_network_that_a_method_refuses_is_refused_alike_in_the_plan_and_on_attaching(cls: type[Method]) -> None:
    for network in NETWORKS:
        case = Case(cls, {}, network)
        why = case.refusal()
        if why is not None:
            with pytest.raises(UserError) as planned:
                case.made.parameters(case_module.network(case).sites)
            assert str(planned.value) == why


@pytest.mark.slow
@pytest.mark.parametrize("cls", discover().values(), ids=lambda cls: cls.name)
def test_a_method_takes_a_network_and_says_what_it_needs_of_the_others(cls: type[Method]) -> None:
    assert takes_a_network(cls), f"{cls.name} refuses every network, so that nothing of it is tested"
    refused = [network for network in FAMILIES if Case(cls, {}, network).refusal() is not None]
    assert not refused or cls.needs, f"{cls.name} refuses {refused}; its class fact `needs` must say what is missing"


def takes_a_network(cls: type[Method]) -> bool:
    return any(Case(cls, {}, network).refusal() is None for network in FAMILIES)


@pytest.mark.slow
def test_what_make_test_tries_on_the_other_networks_is_taken_there() -> None:
    assert set(MEETS) == set(NETWORKS) - set(FAMILIES)
    for network, methods in MEETS.items():
        for name in methods:
            assert Case(discover()[name], {}, network).refusal() is None


def test_a_refusal_lets_a_method_off_a_network_or_an_optional_setting_and_no_more() -> None:
    assert skip_reason(Case(_Refuses, {})) is None
    assert skip_reason(Case(_Refuses, {"backend": "rare"})) == "the rare backend is not here"
    assert skip_reason(Case(_Refuses, {"size": 2})) is None, "the size knob is let off"
    broken = check(Case(_Refuses, {"size": 2}), [PROMISES[1]])[0]
    assert broken.why == "it raised UserError: no size 2"
    for hyper in ({}, {"size": 2}, {"backend": "rare"}):
        assert skip_reason(Case(_Refuses, hyper, "tiny-decoder")) == "a decoder has no head"
    assert takes_a_network(_Refuses)
    assert not takes_a_network(_RefusesAll)


def test_a_value_at_which_a_method_breaks_is_a_variant_so_that_its_promises_tell_of_it() -> None:
    assert {"size": 2} in variants(_Breaks)
    assert {"drop": 1.0} in variants(_Breaks)
    broken = check(Case(_Breaks, {"size": 2}), [PROMISES[0]])[0]
    assert broken.why == "it raised ValueError: size is even"
    assert broken.at.endswith("in __post_init__")


@pytest.mark.slow
@pytest.mark.parametrize(
    "network", [pytest.param(name, marks=[pytest.mark.full] if name == "tiny-t5" else []) for name in FAMILIES]
)
def test_the_template_keeps_every_promise_as_it_stands(monkeypatch: pytest.MonkeyPatch, network: str) -> None:
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    monkeypatch.setattr(registry, "_sources", dict(registry._sources))
    from peftbench.methods import _template

    for hyper in variants(_template.Template):
        verdicts = check(Case(_template.Template, hyper, network))
        assert [str(v) for v in verdicts if not v.kept] == []


def test_make_test_tries_every_promise_in_every_setting_and_the_defaults_on_every_family() -> None:
    whole = list(matrix())
    tried = [(case, promise) for case, promise in whole if is_in_make_test(case, promise)]
    settings = {(case.method, str(case.hyper), promise) for case, promise in tried}
    assert settings == {
        (case.method, str(case.hyper), promise)
        for case, promise in whole
        if not case.hyper or promise not in ABOUT_THE_MACHINERY
    }
    of_families = {
        (str(case), promise)
        for case, promise in whole
        if not case.hyper and case.backbone in FAMILIES and promise not in ABOUT_THE_MACHINERY
    }
    assert of_families <= {(str(case), promise) for case, promise in tried}


def test_every_method_is_tried_small_and_in_all_its_modes() -> None:
    for cls in discover().values():
        tried = variants(cls)
        assert tried[0] == {}
        if cls.size_knob is not None:
            assert any(list(hyper) == [cls.size_knob] for hyper in tried)
    assert variants(_Modes) == [
        {},
        {"size": 2},
        {"shape": "square"},
        {"on": True},
        {"maybe": False},
        {"maybe": True},
        {"scale": 2.0},
        {"drop": 0.5},
        {"roles": "k up down"},
        {"nullable": None},
    ]


def test_a_broken_promise_is_told_in_a_sentence_and_a_crash_too() -> None:
    bad = check(Case(_Crash), [PROMISES[1]])[0]
    assert not bad.kept
    assert str(bad) == "BROKEN  starts as it claims: it raised RuntimeError: no such layer"
    good = check(Case(_Nothing), [PROMISES[1]])[0]
    assert good.kept
    assert str(good) == "kept    starts as it claims"


def test_checking_leaves_the_random_generator_where_it_was() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    check(Case(_Nothing))
    assert torch.equal(torch.rand(1), expected)


def test_a_method_that_trains_only_the_head_keeps_every_promise() -> None:
    for network, facts in NETWORKS.items():
        if facts.kind == "classification":  # the others have no head: nothing would train
            assert [str(v) for v in check(Case(_Nothing, {}, network)) if not v.kept] == []


@dataclasses.dataclass(frozen=True)
class _Nothing(Method):
    """The head alone trains."""

    name, paper, lr = "nothing", "none", 1e-3

    def attach(self, edit: Edit) -> None:
        pass

    def parameters(self, sites: object) -> int:
        return 0


@dataclasses.dataclass(frozen=True)
class _Crash(_Nothing):
    """It does not run."""

    def attach(self, edit: Edit) -> None:
        raise RuntimeError("no such layer")


@dataclasses.dataclass(frozen=True)
class _Refuses(_Nothing):
    """It takes no decoder, no size of 2 and not its other backend."""

    size_knob = "size"
    size: Annotated[int, Field(ge=1, description="its size")] = 8
    backend: Annotated[Literal["usual", "rare"], Field(description="what computes")] = "usual"

    def attach(self, edit: Edit) -> None:
        if edit.backbone.kind == "generation":
            raise UserError("a decoder has no head")
        if self.size == 2:
            raise UserError("no size 2")
        if self.backend == "rare":
            raise UserError("the rare backend is not here")


@dataclasses.dataclass(frozen=True)
class _RefusesAll(_Nothing):
    """It takes nothing."""

    def attach(self, edit: Edit) -> None:
        raise UserError("neither this nor that")


@dataclasses.dataclass(frozen=True)
class _Breaks(_Nothing):
    """It says what is wrong by ValueErrors."""

    size_knob = "size"
    size: Annotated[int, Field(ge=1, description="its size")] = 7
    drop: Annotated[float, Field(ge=0, description="a probability")] = 0.0

    def __post_init__(self) -> None:
        if self.size % 2 == 0:
            raise ValueError("size is even")
        if self.drop >= 1:
            raise ValueError("nothing is left")


@dataclasses.dataclass(frozen=True)
class _Modes(_Nothing):
    """One field of each sort."""

    size_knob = "size"

    size: Annotated[int, Field(ge=1)] = 8
    count: int = 5  # a plain number has no other value to try
    shape: Literal["round", "square"] = "round"
    on: bool = False
    maybe: bool | None = None
    scale: Annotated[float | None, Field(gt=0)] = None
    drop: Annotated[float, Field(ge=0, lt=1)] = 0.0
    roles: str = "q v"
    nullable: float | None = 2.0
