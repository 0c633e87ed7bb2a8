"""A tokenizer whose compiled part panics is one message, and soon: a stranger's patterns may never end."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from architectures import Zoo

from peftbench.backbones import panics
from peftbench.backbones.tokenizers import tokenizer_and_start
from peftbench.errors import LONGEST_MESSAGE, UserError
from peftbench.tasks import tokenizing

ENDLESS = {"type": "Split", "pattern": {"Regex": r"(([a-z ]+)+)+\d\d\d\d!"}, "behavior": "Isolated", "invert": False}
TEXTS = [f"{i} the quick brown fox jumps over the lazy dog and over the next" for i in range(300)]


@pytest.fixture
def tokenizer(zoo: Zoo, tmp_path: Path) -> Any:
    folder = Path(shutil.copytree(zoo["bert"].folder, tmp_path / "bert"))
    facts = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**facts, "pre_tokenizer": ENDLESS}))
    return tokenizer_and_start(str(folder), "classification")[0]


@pytest.mark.parametrize("call", ["tokenised", "framed", "lost", "pairs", "late"])
def test_a_pattern_that_never_ends_is_one_message_after_one_text(
    tokenizer: Any, call: str, capfd: pytest.CaptureFixture[str]
) -> None:
    calls: dict[str, Any] = {
        "tokenised": lambda: list(tokenizing.tokenised("t", tokenizer, TEXTS)),
        "framed": lambda: tokenizing.framed("t", tokenizer, TEXTS, None, 8),
        "lost": lambda: tokenizing.lost("t", tokenizer, [[0] * 8] * 300, TEXTS, None, 8),  # type: ignore[arg-type]
        "pairs": lambda: list(tokenizing.tokenised("t", tokenizer, ["a"] * 300, TEXTS)),
        "late": lambda: list(tokenizing.tokenised("t", tokenizer, ["a"] * 1024 + TEXTS)),
    }
    started = time.monotonic()
    with pytest.raises(UserError, match=r"the tokenizer of backbone '.*bert' cannot read the texts: .*") as caught:
        calls[call]()
    assert time.monotonic() - started < 10
    assert len(str(caught.value)) <= LONGEST_MESSAGE
    assert "panicked" not in capfd.readouterr().err


def test_a_panic_while_a_tokenizer_loads_is_one_message(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import transformers

    def panic(*args: Any, **options: Any) -> Any:
        os.write(2, b"thread panicked")
        raise type("PanicException", (BaseException,), {})("called `Option::unwrap()`")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", panic)
    with pytest.raises(UserError, match=r"tokenizer of backbone .* does not load .*called `Option::unwrap"):
        tokenizer_and_start(str(zoo["bert"].folder), "classification")
    assert capfd.readouterr().err == ""


def test_what_else_is_written_to_standard_error_stays(capfd: pytest.CaptureFixture[str]) -> None:
    with panics.caught():
        os.write(2, b"a warning")
    assert capfd.readouterr().err == "a warning"
    with suppress(KeyboardInterrupt), panics.caught():
        print("another", file=sys.stderr, flush=True)
        raise KeyboardInterrupt
    assert capfd.readouterr().err == "another\n"


def test_a_closed_standard_error_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(number: int) -> int:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(os, "dup", closed)
    with panics.caught():
        pass
    with pytest.raises(panics.PanicError, match="odd"), panics.caught():
        raise type("PanicException", (BaseException,), {})("odd")
