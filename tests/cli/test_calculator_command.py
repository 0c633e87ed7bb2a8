"""`peftbench calculator`: a page as a file, or served to this machine."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from commands import Call

from peftbench.estimate.calculator import serve


def test_the_page_is_one_file_where_it_is_asked_for(call: Call, tmp_path: Path) -> None:
    done = call("calculator", "--out", "pages/mine.html")
    assert done.code == 0
    assert "pages/mine.html" in done.out
    assert "llama-3.1-8b" in (tmp_path / "pages" / "mine.html").read_text(encoding="utf-8")


def test_a_taken_port_is_a_mistake_to_mend(call: Call) -> None:
    with socket.socket() as other:
        other.bind((serve.HOST, 0))
        other.listen()
        done = call("calculator", "--serve", "--port", str(other.getsockname()[1]))
    assert done.code == 2
    assert "give another port" in done.err
    assert "Traceback" not in done.err


def test_serving_says_where_the_page_is_and_ends_when_asked(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(server: serve.Server) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(serve.Server, "serve_forever", interrupted)
    done = call("calculator", "--serve", "--port", "0")
    assert done.code == 0
    assert "http://127.0.0.1:" in done.out
    assert "for this machine alone" in done.out
