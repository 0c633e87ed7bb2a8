"""The facts behind `env_id`: they name what ran a run, and stay the same where that is the same."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kernels import KERNELS, process_environment

import peftbench
from peftbench.records import environment


def test_the_facts_are_json_and_repeat() -> None:
    first, again = environment.facts("cpu", 2), environment.facts("cpu", 2)
    assert json.dumps(first) == json.dumps(again)
    assert first["code"]["version"] == peftbench.__version__
    assert first["packages"]["numpy"]
    assert first["threads"] == 2
    assert first["gpu"] is None
    assert first["code"]["dirty"] in (True, False, None)


@pytest.mark.slow
def test_torch_is_asked_only_where_it_is_loaded() -> None:
    code = (
        "import sys; from peftbench.records import environment\n"
        "before = environment.facts('cpu', 1)['cpu']['capability']; assert 'torch' not in sys.modules\n"
        "import torch\n"
        "print(before, environment.facts('cpu', 1)['cpu']['capability'] == torch.backends.cpu.get_cpu_capability())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "True"]


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_kernel_of_the_blas_is_named_for_each_package_that_brings_one(kernel: str | None) -> None:
    code = (
        "import json; from peftbench.records import environment\n"
        "before = environment.facts('cpu', 1)['blas']\n"
        "import numpy, scipy.linalg\n"
        "print(json.dumps([before, environment.facts('cpu', 1)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=process_environment(kernel), capture_output=True, text=True, check=True
    )
    before, env = json.loads(done.stdout)
    assert before == {}, "asked only where it is loaded"
    assert set(env["blas"]) == {"numpy", "scipy"}
    assert all(re.fullmatch(rf"OpenBLAS \S+ {kernel or '[A-Z]'}\w*", said) for said in env["blas"].values())
    assert all(env["packages"][name] for name in ("numpy", "scipy", "threadpoolctl"))


def test_a_library_outside_packages_goes_by_its_own_name() -> None:
    site = Path("/venv/lib/python3.11/site-packages")
    assert environment._owner(site / "numpy.libs" / "libscipy_openblas64_-32a4.so") == "numpy"
    assert environment._owner(site / "torch" / "lib" / "libopenblas.so.0") == "torch"
    assert environment._owner(Path("/usr/lib/libopenblas.so.0")) == "libopenblas"


def test_the_source_hash_changes_with_a_source_and_with_nothing_else(tmp_path: Path) -> None:
    engine, methods = tmp_path / "peftbench", tmp_path / "methods"
    engine.mkdir()
    methods.mkdir()
    (engine / "train.py").write_text("steps = 1\n")
    (methods / "lora.py").write_text("rank = 8\n")
    roots = {"peftbench": engine, "peftbench/methods": methods}
    before = environment.source_hash(roots)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "run.json").write_text("{}")
    (engine / "notes.txt").write_text("not code")
    assert environment.source_hash(roots) == before
    (methods / "lora.py").write_text("rank = 9\n")
    assert environment.source_hash(roots) != before


def test_a_wheel_has_the_hash_of_its_checkout(tmp_path: Path) -> None:
    engine, methods, wheel = tmp_path / "a" / "peftbench", tmp_path / "a" / "methods", tmp_path / "b" / "peftbench"
    engine.mkdir(parents=True)
    methods.mkdir()
    (engine / "train.py").write_text("steps = 1\n")
    (methods / "lora.py").write_text("rank = 8\n")
    shutil.copytree(engine, wheel)
    shutil.copytree(methods, wheel / "methods")
    checkout = environment.source_hash({"peftbench": engine, "peftbench/methods": methods})
    assert checkout == environment.source_hash({"peftbench": wheel, "peftbench/methods": wheel / "methods"})


@pytest.fixture
def checkout(tmp_path: Path) -> dict[str, Path]:
    """A committed checkout of the project's layout; its source roots."""
    for name in ("peftbench", "methods", "results"):
        (tmp_path / name).mkdir()
    (tmp_path / "peftbench" / "__init__.py").write_text("")
    (tmp_path / "methods" / "lora.py").write_text("rank = 8\n")
    (tmp_path / "README.md").write_text("read me\n")
    (tmp_path / ".gitignore").write_text("scratch.py\n__pycache__/\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "first")
    return {"peftbench": tmp_path / "peftbench", "peftbench/methods": tmp_path / "methods"}


def git(where: Path, *args: str) -> None:
    subprocess.run(["git", "-C", str(where), *args], check=True, capture_output=True)


def test_committed_sources_are_clean_whatever_else_has_changed(checkout: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("another\n")
    (tmp_path / "results" / "run.json").write_text("{}")
    (tmp_path / "methods" / "notes.txt").write_text("not code")
    (tmp_path / "methods" / "__pycache__").mkdir()
    (tmp_path / "methods" / "__pycache__" / "lora.pyc").write_text("")
    assert environment.dirty(checkout) is False


@pytest.mark.parametrize("change", ["edited", "staged", "removed", "untracked", "ignored", "odd name"])
def test_sources_that_no_commit_holds_are_dirty(checkout: dict[str, Path], tmp_path: Path, change: str) -> None:
    source = tmp_path / "methods" / "lora.py"
    if change in ("edited", "staged"):
        source.write_text("rank = 9\n")
    if change == "staged":
        git(tmp_path, "add", "-A")
    if change == "removed":
        source.unlink()
    new = {"untracked": "mine.py", "ignored": "scratch.py", "odd name": "méthode deux.py"}
    if change in new:
        (tmp_path / "methods" / new[change]).write_text("rank = 1\n")
    assert environment.dirty(checkout) is True


def test_outside_a_checkout_of_the_project_nothing_is_said_about_commits(
    checkout: dict[str, Path], tmp_path: Path
) -> None:
    site = tmp_path / ".venv" / "peftbench"
    site.mkdir(parents=True)
    (site / "__init__.py").write_text("")
    assert environment.dirty({"peftbench": site}) is None


def test_before_the_first_commit_everything_is_dirty(tmp_path: Path) -> None:
    (tmp_path / "peftbench").mkdir()
    (tmp_path / "peftbench" / "__init__.py").write_text("")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    assert environment.dirty({"peftbench": tmp_path / "peftbench"}) is True


def test_a_plugin_is_part_of_the_code_that_ran(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text("rank = 1\n")
    first = environment.code([plugin])
    plugin.write_text("rank = 2\n")
    assert environment.code([plugin]) != first
    assert "plugins" not in environment.code()


def test_gpus_of_one_model_are_one_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_gpu", lambda device: {"name": "H200", "capability": "9.0", "cuda": "13.0"})
    one, other = (environment.facts(device, 1) for device in ("cuda:0", "cuda:1"))
    assert one == other
    assert one["device"] == "cuda"


def test_deterministic_kernels_are_part_of_the_environment() -> None:
    usual, same_bits = environment.facts("cpu", 1), environment.facts("cpu", 1, deterministic=True)
    assert "deterministic" not in usual, "so that environments of older records stay equal"
    assert same_bits == {**usual, "deterministic": True}
