"""`check-method`: what it says of sound methods, of planted bugs in plugin files, and of a user's mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from peftbench.cache import method_folder
from peftbench.cli import check_view
from peftbench.cli.app import main
from peftbench.method import registry, scaffold
from peftbench.verify import check_method
from peftbench.verify.contract import PROMISES
from peftbench.verify.contract.networks import FAMILIES, NETWORKS
from peftbench.verify.contract.variants import ROLES

HEAD = """\
from dataclasses import dataclass
from typing import Annotated, Literal
import torch
from pydantic import Field
from peftbench.backbones.modules import SiteLinear
from peftbench.errors import UserError
from peftbench.method import register
from peftbench.methods.lora import LoRA, LoRALinear as Layer

"""
METHOD = """
@register
@dataclass(frozen=True)
class Bad(LoRA):
    \"\"\"LoRA with a mistake.\"\"\"

    name = "bad"

    def attach(self, edit):
        edit.swap(self.roles, lambda base: Layer(base, self.rank, self.alpha, self.dropout))
"""
BROKEN = {
    "merging computes the same": """\
class Layer(Layer):
    def folded(self):
        return SiteLinear.of(self.base.dense_weight() + self.B @ self.A * 3, self.base.bias)
""",
    "starts as it claims": """\
class Layer(Layer):
    def __init__(self, *args):
        super().__init__(*args)
        torch.nn.init.normal_(self.B)
""",
    "undo is exact": """\
class Layer(Layer):
    def forward(self, x):
        assert self.training is None
""",
}
REFUSES_THE_DECODER = """
        if edit.backbone.kind == "generation":
            raise UserError("it needs a task head, which this network has not")
"""
REFUSES_BOTH = """
        raise UserError("it needs convolutions")
"""
REFUSES_ROLES_WRONGLY = """
    def __post_init__(self):
        if "up" in self.roles:
            raise ValueError("attention only")
"""
BREAKS_AT_ITS_DEFAULTS = """
    def __post_init__(self):
        raise ValueError("it never works")
"""
HAS_A_FIELD_OF_NO_TYPE = """
    extra: "Anything" = 3
"""


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """Standard output in one line, however it was wrapped."""
        return " ".join(self.out.split())


Check = Callable[..., Done]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Check:
    """Write a file, run `check-method` in this process, forget what it registered; the defaults only unless told."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path / "cache"))
    registry.discover()
    for name in ("_registry", "_sources", "_plugins"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))

    def run(file: str, text: str, *args: str, all_settings: bool = False) -> Done:
        if text:
            (tmp_path / file).write_text(text)
        if not all_settings:
            monkeypatch.setattr(check_method, "settings", lambda cls, given=None: [dict(given or {})])
        monkeypatch.setattr(sys, "argv", ["peftbench", "check-method", *(args or (file,))])
        with pytest.raises(SystemExit) as end:
            main()
        return Done(int(end.value.code or 0), *capsys.readouterr())

    return run


@pytest.mark.full
@pytest.mark.slow
def test_the_template_as_a_plugin_file_keeps_all_promises(tmp_path: Path) -> None:
    """In a process of its own, as a user runs it, in every setting."""
    template = method_folder() / "_template.py"
    (tmp_path / "mine.py").write_text(scaffold.filled_in(template.read_text(), "mine"))
    command = [sys.executable, "-m", "peftbench", "check-method", "mine.py"]
    environment = {**os.environ, "PEFTBENCH_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "BROKEN" not in done.stdout
    assert (
        f"mine keeps all {len(PROMISES)} promises on an encoder, a decoder and an encoder-decoder in 2 settings"
        in done.stdout
    )
    assert "mine on tiny-encoder: 17 of 17 kept" in done.stderr  # progress, beside the verdict
    assert max(map(len, done.stdout.splitlines()[1:])) <= 100


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("promise", BROKEN)
def test_a_bug_in_a_plugin_file_is_told_with_what_to_look_at(check: Check, promise: str) -> None:
    done = check("bad.py", HEAD + BROKEN[promise] + METHOD)
    assert done.code == 1, done.err
    assert f"BROKEN {promise}:" in done.said
    assert check_view.LOOK_AT[promise.replace(" ", "_")] in done.said
    assert "bad breaks " in done.said
    if promise == "undo is exact":  # an assertion without a message, in the plugin
        assert "(at bad.py:12 in forward)" in done.said


@pytest.mark.full
@pytest.mark.slow
def test_json_has_every_promise_and_a_plugin_may_be_named_beside_the_method(check: Check) -> None:
    done = check("bad.py", HEAD + BROKEN["starts as it claims"] + METHOD, "bad", "--plugin", "bad.py", "--json")
    (found,) = json.loads(done.out)
    assert done.code == 1
    assert found["method"] == "bad"
    assert not found["sound"]
    assert [p["promise"] for p in found["promises"]] == [p.__name__ for p in PROMISES]
    outcomes = {p["promise"]: p["outcome"] for p in found["promises"]}
    assert outcomes["starts_as_it_claims"] == "broken"
    assert outcomes["undo_is_exact"] == "kept"


def test_it_computes_in_one_thread_and_leaves_the_caller_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = list[int]()
    monkeypatch.setattr(check_method, "check", lambda *_: threads.append(torch.get_num_threads()) or [])
    torch.set_num_threads(2)
    try:
        check_method.examine(registry.find("lora"), networks=["tiny-encoder"])
        assert set(threads) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_a_refused_network_is_not_held_against_a_method(check: Check) -> None:
    done = check("bad.py", HEAD + METHOD.replace("(self, edit):", f"(self, edit):{REFUSES_THE_DECODER}"))
    assert done.code == 0, done.out
    assert "bad keeps the 18 promises that apply on an encoder in 1 setting" in done.said
    assert "n/a the future changes nothing" in done.said
    assert "a decoder, defaults: it needs a task head, which this network has not" in done.said


def test_a_method_that_refuses_every_network_fails(check: Check) -> None:
    done = check("bad.py", HEAD + METHOD.replace("(self, edit):", f"(self, edit):{REFUSES_BOTH}"))
    assert done.code == 1
    assert done.said.endswith("bad refuses every network, so that no promise could be tried: it needs convolutions")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "outcome", "why"),
    [
        (REFUSES_ROLES_WRONGLY, "kept", "on an encoder, roles=k up down: it raised ValueError: attention only"),
        (BREAKS_AT_ITS_DEFAULTS, "not tried", "on an encoder, defaults: it raised ValueError: it never works"),
        (HAS_A_FIELD_OF_NO_TYPE, "not tried", "on an encoder, defaults: it raised"),
    ],
    ids=["at one value", "at every value", "a field without a type"],
)
def test_a_class_that_raises_when_it_is_made_does_not_describe_itself(
    check: Check, monkeypatch: pytest.MonkeyPatch, body: str, outcome: str, why: str
) -> None:
    real = check_method.settings
    monkeypatch.setattr(
        check_method,
        "settings",
        lambda cls, given=None: [hyper for hyper in real(cls) if hyper in ({}, {"roles": ROLES})],
    )
    done = check("bad.py", HEAD + METHOD + body, all_settings=True)
    assert done.code == 1
    assert "BROKEN describes itself:" in done.said
    assert why in done.said
    assert "bad breaks 1 promise: describes itself" in done.said  # the other promises do not repeat it
    assert ("n/a undo is exact" in done.said) == (outcome == "not tried")


@pytest.mark.slow
def test_given_hyperparameters_are_tried_alone(check: Check) -> None:
    done = check("", "", "lora", "rank=3", "roles=q", all_settings=True)
    assert done.code == 0, done.out
    assert "lora keeps all 20 promises on an encoder, a decoder and an encoder-decoder in 1 setting" in done.said
    assert "rank=3 roles=q" in done.err


@pytest.mark.parametrize(
    ("pair", "message"), [("rnk=3", "unknown hyperparameter 'rnk'; did you mean 'rank'"), ("rank=0", "rank = 0"),
                          ("rank", "write key=value")],
)  # fmt: skip
def test_a_given_hyperparameter_that_is_none_is_refused(check: Check, pair: str, message: str) -> None:
    done = check("", "", "lora", pair, all_settings=True)
    assert done.code == 2
    assert message in done.err


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("lroa", "", "did you mean 'lora'?"),
        ("empty.py", "x = 1\n", "registers no method"),
        ("wrong.py", "def f(:\n", "SyntaxError"),
        ("absent.py", "", "no plugin file"),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_code_2(check: Check, name: str, text: str, message: str) -> None:
    done = check(name, text)
    assert done.code == 2
    assert message in done.err
    assert done.out == ""


@pytest.mark.parametrize("width", [60, 100])
def test_what_it_says_is_wrapped_to_a_width(width: int) -> None:
    lora: Any = registry.find("lora")
    case = check_method.Case(lora)
    verdicts = [check_method.PromiseVerdict(p.__name__, "why " * 60) for p in PROMISES]
    found = check_method.Examination(lora, [(case, verdicts)], [(case, "because " * 60)])
    lines = check_view.text(found, width).splitlines()[1:]  # the first has the file's path
    assert width - 12 < max(map(len, lines)) <= width
    assert "              " not in "\n".join(lines)


def test_every_promise_says_what_to_look_at() -> None:
    assert set(check_view.LOOK_AT) == {p.__name__ for p in PROMISES}


@pytest.mark.parametrize(("option", "networks"), [((), FAMILIES), (("--all-networks",), NETWORKS)])
def test_more_networks_are_tried_if_asked_for(
    check: Check, monkeypatch: pytest.MonkeyPatch, option: tuple[str, ...], networks: dict[str, Any]
) -> None:
    promise = PROMISES[0].__name__
    monkeypatch.setattr(check_method, "check", lambda case, only: [check_method.PromiseVerdict(promise)])
    done = check("good.py", HEAD + METHOD, "good.py", *option)
    assert done.code == 0
    *most, last = [network.says for network in networks.values()]
    assert f"promise that apply on {', '.join(most)} and {last} in 1 setting" in done.said
