"""What cannot be a method is refused where it is loaded, and a formula that is wrong where it is used."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
from run_specs import spec

from peftbench.backbones.load import load
from peftbench.errors import UserError
from peftbench.method.edit import Edit
from peftbench.method.registry import discover, find, make
from peftbench.run.session import Session

GOOD = """
from dataclasses import dataclass
from peftbench.method import Method, register

@register
@dataclass(frozen=True)
class Mine(Method):
    name, paper, lr = "NAME", "arXiv:0", 1e-3
    roles: str = "q v"

    def attach(self, edit):
        edit.thaw(self.roles, "bias")

    def parameters(self, sites):
        return sum(s.biases for s in sites.linear(self.roles))
"""


@pytest.mark.parametrize(
    ("wrong", "right", "said"),
    [
        ("def parameters", "def counted", "must define `parameters`"),
        ("def attach", "def fasten", "must define `attach`"),
        ("@dataclass(frozen=True)\n", "", "must be decorated with @dataclass"),
        ('roles: str = "q v"', 'roles: str = "q v"\n    label: int = 1', "rename the field"),
        ('roles: str = "q v"', "roles: str", "needs a default"),
        ("1e-3\n", '1e-3\n    size_knob = "rank"\n', "none of its fields"),
        ("@register\n", "", "registers no method"),
        ("def attach(", "def attach((", "SyntaxError"),
        ("@register\n", "raise SystemExit(3)\n@register\n", r"SystemExit: 3 \(line \d+\)"),
    ],
)
def test_a_plugin_that_is_no_method_is_refused_with_its_reason(
    tmp_path: Path, wrong: str, right: str, said: str
) -> None:
    path = tmp_path / f"bad_{abs(hash(said))}.py"
    text = GOOD.replace("NAME", path.stem)
    assert wrong in text
    path.write_text(text.replace(wrong, right))
    with pytest.raises(UserError, match=said):
        discover([path])


def test_every_method_says_what_trains_and_what_is_known_about_when_it_fails() -> None:
    for name, cls in discover().items():
        assert cls.size_formula, f"{name} has no size_formula"
        assert cls.caveats, f"{name} has no caveats"


def test_a_run_whose_count_differs_from_the_formula_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "miscounted.py"
    path.write_text(GOOD.replace("NAME", "miscounted").replace("s.biases", "1 + s.biases"))
    run = spec("lora")
    run = replace(run, method=replace(run.method, name="miscounted", label="miscounted", hyper={}))
    with pytest.raises(UserError, match="parameters\\(\\) says 132 and 128 train"):
        Session("cpu", threads=1, plugins=[path]).execute(run)


LINEAR_HERE = "q, k, v, o, up, down"


@pytest.mark.parametrize("method", ["lora", "dora", "qlora"])
@pytest.mark.parametrize(
    ("roles", "said"),
    [
        ("attn", rf"'attn' is no linear layer\. Valid here: {LINEAR_HERE}$"),
        ("", rf"no role is named\. Valid here: {LINEAR_HERE}$"),
        ("q z", r"unknown linear role 'z'\. Valid: down, k, o, q, up, v$"),
        ("q v q", r"role 'q' stands twice in 'q v q'; name each role once"),
    ],
)
def test_roles_that_are_no_linear_layers_are_refused_before_anything_runs(method: str, roles: str, said: str) -> None:
    sites = load("tiny-encoder", "classification", 2).sites
    with pytest.raises(UserError, match=said):
        make(find(method), {"roles": roles}).parameters(sites)


def test_a_role_named_twice_is_refused_wherever_roles_are_named() -> None:
    backbone = load("tiny-encoder", "classification", 2)
    with pytest.raises(UserError, match="'ffn' stands twice"):
        backbone.sites.of("ffn attn ffn")
    with pytest.raises(UserError, match="'q' stands twice"):
        Edit(backbone).thaw("q q")


def test_an_unknown_method_says_how_to_give_ones_own() -> None:
    with pytest.raises(UserError, match=r"unknown method 'lroa'; did you mean 'lora'\?.*--plugin FILE"):
        find("lroa")


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e39])
def test_no_method_takes_a_number_that_is_not_finite_in_float32(value: float) -> None:
    numbers = [(cls, f.name) for cls in discover().values() for f in fields(cls) if "float" in str(f.type)]
    assert len(numbers) > 10
    for cls, name in numbers:
        with pytest.raises(UserError, match=f"{name} = "):
            make(cls, {name: value})
