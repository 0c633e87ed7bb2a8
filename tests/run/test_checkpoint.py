"""A run that ends early goes on from its checkpoint, as if it had never ended: losses, scores, predictions, weights."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import factories
import pytest
import torch
from run_specs import spec

from peftbench.measure.probes import CARDS
from peftbench.method import registry
from peftbench.records import record
from peftbench.records.spec import RunSpec
from peftbench.run import checkpoint as checkpoint_module
from peftbench.run.session import Abandoned, Session

STEPS, CUT = 10, 7
METHODS = sorted(registry.discover())


def session(folder: Path, every: int = 100) -> Session:
    return Session("cpu", threads=1, checkpoints={"folder": str(folder), "every": every})


def stopped(asked: RunSpec, folder: Path, after: int = CUT, every: int = 100) -> Session:
    """A run that was asked to stop after so many steps, and wrote its checkpoint."""
    made, at, began = session(folder, every), [0], [0]

    def note(facts: Any) -> None:
        at[0] = facts.get("step", at[0])
        began[0] = began[0] or at[0]

    with pytest.raises(Abandoned):
        made.execute(asked, note, lambda: at[0] >= after + max(0, began[0] - 1))
    return made


class Killed(BaseException):
    """What nothing catches, and so writes nothing, as the end of the process."""


def killed(asked: RunSpec, folder: Path, at: int, every: int) -> None:
    """A run whose process dies after so many steps."""

    def die(facts: Any) -> None:
        if facts.get("step") == at:
            raise Killed

    with pytest.raises(Killed):
        session(folder, every).execute(asked, die)


def agree(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in ("curve", "metrics", "predictions", "checkpoint_step", "stopped_at"):
        assert found[name] == expected[name], name


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_on_with_the_same_losses_and_predictions_bit_for_bit(method: str, tmp_path: Path) -> None:
    """Killed behind step 22 of 30, with a checkpoint at 20."""
    asked = spec(method, steps=30, eval_every=9)
    if method in ("full", "galore", "bitfit", "layernorm"):  # the whole base, dropout included
        asked = replace(asked, backbone=replace(asked.backbone, dropout=0.2))
    whole = session(tmp_path / "whole").execute(asked)
    killed(asked, tmp_path / "cut", at=22, every=5)
    rest = session(tmp_path / "cut").execute(asked)
    agree(rest, whole)
    assert [at["step"] for at in rest["resumed"]] == [20]
    assert "resumed" not in whole


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"checkpoint": "best"}, {"patience": 1}, {"accumulation": 2}, {"decay": "cosine"}])
def test_the_best_weights_so_far_and_every_schedule_go_on(change: dict[str, Any], tmp_path: Path) -> None:
    asked = spec("lora", steps=STEPS, eval_every=2, **change)
    whole = session(tmp_path / "whole").execute(asked)
    after = min(CUT, whole["stopped_at"] - 1)
    stopped(asked, tmp_path / "cut", after)
    agree(session(tmp_path / "cut").execute(asked), whole)


@pytest.mark.slow
def test_probes_and_the_dropout_of_the_base_go_on(tmp_path: Path) -> None:
    asked = spec("lora", steps=STEPS, eval_every=2)
    asked = replace(
        asked, probes={"decomposition": CARDS["decomposition"].version}, backbone=replace(asked.backbone, dropout=0.3)
    )
    asked = replace(asked, backbone=replace(asked.backbone, dropout_version=2))
    whole = session(tmp_path / "whole").execute(asked)
    stopped(asked, tmp_path / "cut")
    rest = session(tmp_path / "cut").execute(asked)
    agree(rest, whole)
    assert rest["probes"] == whole["probes"]


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_from_the_last_checkpoint_it_wrote(tmp_path: Path) -> None:
    asked = spec("adalora", steps=STEPS)
    whole = session(tmp_path / "whole").execute(asked)
    killed(asked, tmp_path / "cut", at=9, every=4)
    rest = session(tmp_path / "cut", every=4).execute(asked)
    agree(rest, whole)
    assert [at["step"] for at in rest["resumed"]] == [8]


@pytest.mark.slow
def test_a_run_may_be_stopped_many_times(tmp_path: Path) -> None:
    asked = spec("dora", steps=STEPS)
    whole = session(tmp_path / "whole").execute(asked)
    for _ in range(3):
        stopped(asked, tmp_path / "cut", after=2)
    rest = session(tmp_path / "cut").execute(asked)
    agree(rest, whole)
    assert [at["step"] for at in rest["resumed"]] == [2, 4, 6]


@pytest.mark.slow
def test_a_checkpoint_of_other_code_or_a_damaged_one_is_left_alone_and_the_record_says_why(tmp_path: Path) -> None:
    asked = spec("lora", steps=STEPS)
    stopped(asked, tmp_path)
    other = session(tmp_path)
    assert other.checkpoints is not None
    other.checkpoints.env = {**other.checkpoints.env, "packages": {"torch": "1.0"}}
    body = other.execute(asked)
    assert "torch" in body["checkpoint_left"]
    assert "resumed" not in body
    (path,) = tmp_path.glob("*.pt")
    path.write_bytes(path.read_bytes()[:1_000])
    assert "cannot be read" in session(tmp_path).execute(asked)["checkpoint_left"]


@pytest.mark.slow
def test_a_file_that_would_run_code_when_it_is_read_is_not_read(tmp_path: Path) -> None:
    asked, trap = spec("lora", steps=STEPS), tmp_path / "trap"

    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (trap,)

    torch.save({"format": 1, "spec_id": asked.id, "x": Trap()}, tmp_path / f"{asked.id}.pt")
    assert "cannot be read" in session(tmp_path).execute(asked)["checkpoint_left"]
    assert not trap.exists()


@pytest.mark.slow
def test_an_optimiser_whose_state_a_checkpoint_cannot_have_says_so(tmp_path: Path) -> None:
    from peftbench.errors import UserError

    asked, made = spec("lora", steps=4), session(tmp_path, every=1)
    real = checkpoint_module._optimizer_state

    def strange(trainer: Any) -> Any:
        trainer.optimizer.state["a text"] = {"step": 1}  # type: ignore[index]
        return real(trainer)

    checkpoint_module._optimizer_state = strange
    try:
        with pytest.raises(UserError, match="checkpoint_every: null"):
            made.execute(asked)
    finally:
        checkpoint_module._optimizer_state = real


EXPERIMENT = """
name: long
backbone: tiny-encoder
device: cpu
tasks: [{task: synthetic/classification, max_length: 32}]
budget: {steps: 400, batch_size: 8, seeds: 1}
checkpoint_every: 50
profile: false
methods: [adalora]
reference: adalora
"""


def command(folder: Path) -> subprocess.Popen[str]:
    """A command that trains in `folder`, which has its results."""
    (folder / "e.yaml").write_text(EXPERIMENT)
    line = [sys.executable, "-m", "peftbench", "run", "e.yaml", "--results", ".", "-q"]
    return subprocess.Popen(line, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> record.Record:
    """The record of a command that nothing ends early."""
    folder = tmp_path_factory.mktemp("whole")
    assert command(folder).wait(300) == 0
    (found,) = record.read_all(folder)
    return found


def saved_within(folder: Path, seconds: float = 120) -> Path:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := list((folder / "checkpoints").glob("[0-9a-f]*.pt")):
            return found[0]
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint within {seconds} s")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_is_ended_goes_on_when_it_is_given_again(
    number: signal.Signals, tmp_path: Path, whole: record.Record
) -> None:
    """SIGTERM saves and exits with 130; after kill -9 the last checkpoint that was written counts."""
    running = command(tmp_path)
    saved_within(tmp_path)
    running.send_signal(number)
    code = running.wait(60)
    assert code == (130 if number == signal.SIGTERM else -9)
    assert command(tmp_path).wait(300) == 0
    (rest,) = [r for r in record.read_all(tmp_path) if r.is_finished]
    assert rest.raw()["curve"] == whole.raw()["curve"]
    assert rest.raw()["predictions"] == whole.raw()["predictions"]
    assert rest.raw()["resumed"]
    assert not (tmp_path / "checkpoints").exists()


def test_the_checkpoint_of_a_finished_run_is_removed_even_if_its_process_died_first(tmp_path: Path) -> None:
    made = record.read(record.write(tmp_path, factories.run(score=0.5)))
    (tmp_path / record.CHECKPOINTS).mkdir()
    done, unfinished = (tmp_path / record.CHECKPOINTS / f"{name}.pt" for name in (made.spec_id, "0" * 16))
    done.touch()
    unfinished.touch()
    record.discard_checkpoints(tmp_path, [made])
    assert not done.exists()
    assert unfinished.exists()


@pytest.mark.slow
def test_one_bit_that_has_changed_makes_a_checkpoint_unreadable(tmp_path: Path) -> None:
    asked = spec("lora", steps=STEPS)
    stopped(asked, tmp_path)
    (path,) = tmp_path.glob("*.pt")
    with zipfile.ZipFile(path) as file:
        largest = max(file.infolist(), key=lambda info: info.file_size)
    content = bytearray(path.read_bytes())
    name, extra = struct.unpack_from("<HH", content, largest.header_offset + 26)
    content[largest.header_offset + 30 + name + extra + largest.file_size // 2] ^= 1
    path.write_bytes(content)
    body = session(tmp_path).execute(asked)
    assert "cannot be read" in body["checkpoint_left"]
    assert "resumed" not in body


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["evaluate", "test"])
def test_a_run_that_is_stopped_while_it_is_evaluated_loses_no_step(phase: str, tmp_path: Path) -> None:
    asked = spec("lora", steps=STEPS, eval_every=5)
    whole, at = session(tmp_path / "whole").execute(asked), {"step": 0, "phase": ""}

    def stop() -> bool:  # between steps it is asked before the progress of the next one
        caller = sys._getframe(1).f_code.co_name
        return caller == "_raise_if_stopped" and (at["phase"] == "test" if phase == "test" else at["step"] == 5)

    with pytest.raises(Abandoned, match="while evaluating"):
        session(tmp_path / "cut").execute(asked, at.update, stop)
    rest = session(tmp_path / "cut").execute(asked)
    agree(rest, whole)
    assert rest["resumed"][0]["step"] == (STEPS if phase == "test" else 5)


@pytest.mark.slow
def test_where_no_checkpoint_can_be_written_the_run_goes_on_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    asked = spec("lora", steps=STEPS)
    body = session(tmp_path / "file", every=4).execute(asked)
    assert "could not be written after step" in body["checkpoint_left"]
    assert body["predictions"] == session(tmp_path / "whole").execute(asked)["predictions"]
