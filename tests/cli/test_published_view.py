"""`estimate --check` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import Call, called


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    return called(monkeypatch, capsys, tmp_path)


def test_stored_predictions_are_compared_by_group_beside_rivals(call: Call) -> None:
    done = call("estimate", "--check", "V", "F", "--stored")
    assert done.code == 0
    assert "| V " in done.out
    assert "vramcalc" in done.out
    assert "| L " not in done.out


def test_a_group_that_does_not_exist_lists_those_that_do(call: Call) -> None:
    done = call("estimate", "--check", "Z")
    assert done.code == 2
    assert "unknown group 'Z'" in done.err
    assert "V" in done.err


def test_stored_without_check_is_refused(call: Call) -> None:
    done = call("estimate", "llama-3.2-1b", "lora", "--stored")
    assert done.code == 2
    assert "--check" in done.err


@pytest.mark.parametrize(
    "words",
    [
        ("--gpu", "l40s"),
        ("--fit", "24GB"),
        ("--program", "plain"),
        ("--part", "loss=whole"),
        ("--seq", "512"),
        ("--batch", "1"),
        ("--examples", "10"),
        ("--all",),
        ("--no-padding",),
        ("--task", "generation"),
    ],
)
def test_an_option_that_means_nothing_beside_check_is_refused(call: Call, words: tuple[str, ...]) -> None:
    done = call("estimate", "--check", "V", "--stored", *words)
    assert done.code == 2
    assert f"{words[0].replace('--no-padding', '--padding')} does not go with --check" in done.err
    assert "give letters of groups, --stored, --out DIR or --json" in done.err
    assert not done.out


def test_no_model_is_refused_with_what_to_give(call: Call) -> None:
    done = call("estimate")
    assert done.code == 2
    assert "MODEL" in done.err


def test_predictions_and_figure_are_written(call: Call, tmp_path: Path) -> None:
    done = call("estimate", "--check", "V", "--stored", "--out", str(tmp_path))
    assert done.code == 0
    assert set(json.loads((tmp_path / "predictions.json").read_text())) >= {"V1", "V13"}
    assert (tmp_path / "published.png").stat().st_size > 10_000
    assert "wrote" in done.out


def test_json_has_the_error_of_each_point(call: Call) -> None:
    done = call("estimate", "--check", "V", "--stored", "--json")
    assert done.code == 0
    assert abs(json.loads(done.out)["errors_percent"]["V8"]) < 0.1
