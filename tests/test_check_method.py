"""`check-method`: what it says of sound methods, of planted bugs in plugin files, and of a user's mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from peftbench import check_method, scaffold
from peftbench.contract import PROMISES
from peftbench.manifest import method_files

HEAD = """\
from dataclasses import dataclass
import torch
from peftbench.backbones.modules import SiteLinear
from peftbench.method import register
from peftbench.methods.lora import LoRA, LoRALinear

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
class Layer(LoRALinear):
    def folded(self):
        return SiteLinear.of(self.base.dense_weight() + self.B @ self.A * 3, self.base.bias)
""",
    "starts as it claims": """\
class Layer(LoRALinear):
    def __init__(self, *args):
        super().__init__(*args)
        torch.nn.init.normal_(self.B)
""",
    "undo is exact": """\
class Layer(LoRALinear):
    def forward(self, x):
        assert self.training is None
""",
}


def run(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "peftbench", "check-method", *args]
    environment = {**os.environ, "PEFTBENCH_CACHE": str(folder / "cache")}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_template_as_a_plugin_file_keeps_all_promises(tmp_path: Path) -> None:
    template = next(p for p in method_files() if p.name == "_template.py")
    (tmp_path / "mine.py").write_text(scaffold.filled_in(template.read_text(), "mine"))
    done = run(tmp_path, "mine.py")
    assert done.returncode == 0, done.stderr
    assert "BROKEN" not in done.stdout
    assert f"mine keeps all {len(PROMISES)} promises on an encoder and a decoder in 2 settings" in done.stdout
    assert "mine on tiny-encoder: 17 of 17 kept" in done.stderr  # progress, beside the verdict


@pytest.mark.parametrize("promise", BROKEN)
def test_a_bug_in_a_plugin_file_is_told_with_what_to_look_at(tmp_path: Path, promise: str) -> None:
    (tmp_path / "bad.py").write_text(HEAD + BROKEN[promise] + METHOD)
    done = run(tmp_path, "bad.py")
    assert done.returncode == 1, done.stderr
    assert f"BROKEN  {promise}:" in done.stdout
    assert check_method.LOOK_AT[promise.replace(" ", "_")] in done.stdout
    assert "bad breaks " in done.stdout
    if promise == "undo is exact":  # an assertion without a message, in the plugin
        assert "(at bad.py:9 in forward)" in done.stdout


def test_json_has_every_promise(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(HEAD + BROKEN["starts as it claims"] + METHOD)
    done = run(tmp_path, "bad.py", "--json")
    (found,) = json.loads(done.stdout)
    assert not found["sound"]
    assert [p["promise"] for p in found["promises"]] == [p.__name__ for p in PROMISES]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("lroa", "", "did you mean 'lora'?"),
        ("empty.py", "x = 1\n", "registers no method"),
        ("wrong.py", "def f(:\n", "SyntaxError"),
        ("absent.py", "", "no plugin file"),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_code_2(tmp_path: Path, name: str, text: str, message: str) -> None:
    if text:
        (tmp_path / name).write_text(text)
    done = run(tmp_path, name)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_every_promise_says_what_to_look_at() -> None:
    assert set(check_method.LOOK_AT) == {p.__name__ for p in PROMISES}
