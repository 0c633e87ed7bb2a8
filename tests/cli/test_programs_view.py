"""`estimate --program` on the command line: what is listed, what is refused, and what is printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import Call, called

from peftbench.estimate.program import programs


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    return called(monkeypatch, capsys, tmp_path)


PLAIN = ("estimate", "tiny-decoder", "lora", "--seq", "16", "--program", "plain")


def test_programs_and_all_their_parts_are_listed(call: Call) -> None:
    told = call("estimate", "--programs")
    assert told.code == 0
    first = [line.split()[0] for line in told.out.splitlines() if line]
    own = programs.program("plain")
    assert own is not None
    assert {*programs.names(), *vars(own)} - {"name", "given"} <= set(first)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--program", "plian"), "unknown program 'plian'; did you mean 'plain'?"),
        (("--part", "los=whole"), "unknown part 'los'; did you mean 'loss'?"),
        (("--part", "loss=hole"), "unknown loss 'hole'; did you mean 'whole'?"),
        (("--part", "chunk=many"), "--part chunk=many: give a whole number"),
        (("--part", "chunk=0"), "--part chunk=0: give a whole number of tokens from 1"),
        (("--part", "clip=perhaps"), "--part clip=perhaps: give true or false"),
        (("--part", "loss"), "--part 'loss': give NAME=VALUE"),
        (("--part", "loss=whole", "--part", "loss=fused"), "--part loss is given twice"),
        (("--dtype", "fp8"), "--dtype: unknown dtype 'fp8'"),
        (("--dtype", "bf16", "--part", "weights=fp32"), "--dtype bf16 and --part weights=fp32 contradict each other"),
        (("--checkpointing", "--part", "checkpointing=no"), "--checkpointing and --part checkpointing=no contradict"),
        (("--optimizer", "sgd", "--part", "optimizer=adamw"), "--optimizer sgd and --part optimizer=adamw contradict"),
        (
            ("--attention", "math", "--part", "attention=eager"),
            "--attention math and --part attention=eager contradict",
        ),
    ],
)
def test_mistakes_are_named_with_the_option_that_has_them(call: Call, words: tuple[str, ...], said: str) -> None:
    told = call(*PLAIN, *words)
    assert told.code == 2
    assert said in told.err


def test_parts_need_a_program(call: Call) -> None:
    told = call("estimate", "tiny-decoder", "lora", "--part", "loss=whole")
    assert told.code == 2
    assert "--part loss goes with a --program of plain" in told.err


def test_options_become_parts_and_json_has_them_all(call: Call) -> None:
    words = ("--dtype", "fp32", "--part", "weights=float32", "--checkpointing", "--optimizer", "adamw8bit", "--json")
    told = call(*PLAIN, *words, "--attention", "math")
    assert told.code == 0
    written = json.loads(told.out)
    own = written["setting"]["program"]
    assert (own["weights"], own["checkpointing"], own["optimizer"], own["attention"]) == (
        "float32",
        True,
        "adamw8bit",
        "math",
    )
    assert written["reserved_bytes"] >= written["peak_bytes"]
    assert "optimizer=adamw8bit" in written["assumed"]["program"]


def test_the_text_says_what_the_allocator_holds(call: Call) -> None:
    reserved = [line for line in call(*PLAIN).out.splitlines() if line.startswith("reserved")]
    assert len(reserved) == 1
    assert not any(line.startswith("reserved") for line in call(*PLAIN[:-2]).out.splitlines())


@pytest.mark.full
@pytest.mark.slow
def test_every_method_takes_a_program(call: Call) -> None:
    every = call("estimate", "tiny-decoder", "--all", "--program", "litgpt", "--seq", "16", "--json")
    assert every.code == 0
    assert {e["setting"]["program"]["name"] for e in json.loads(every.out)["estimates"]} == {"litgpt"}


@pytest.mark.slow
def test_the_largest_batch_is_that_of_the_program(call: Call) -> None:
    fitted = call("estimate", "tiny-decoder", "lora", "--seq", "16", "--program", "plain", "--fit", "18MiB", "--json")
    told = json.loads(fitted.out)
    said = [line for line in fitted.err.splitlines() if line.startswith("simulating batch ")]
    assert len(said) == len(set(said)) > 1
    assert f"simulating batch {told['largest']}, 16 tokens ..." in said
    assert told["fits"]["peak_bytes"] <= 18 * 2**20 < told["next_larger"]["peak_bytes"]
