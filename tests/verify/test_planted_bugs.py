"""The contract is worth what it catches: every planted bug breaks a promise, and every promise breaks for some bug."""

from __future__ import annotations

import pytest
from planted_bugs import BUGS, Bug

from peftbench.verify.contract import PROMISES, check


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
@pytest.mark.parametrize("bug", BUGS, ids=[b.what for b in BUGS])
def test_a_planted_bug_is_caught_by_the_promise_it_breaks(monkeypatch: pytest.MonkeyPatch, bug: Bug) -> None:
    sound = {p.__name__: p for p in PROMISES}
    bug.patch(monkeypatch)
    for name in bug.caught_by:
        verdict = check(bug.case, [sound[name]])[0]
        assert not verdict.kept, f"{name} does not notice that {bug.what}"


def test_every_promise_catches_a_planted_bug() -> None:
    caught = {name for bug in BUGS for name in bug.caught_by}
    assert caught == {p.__name__ for p in PROMISES}


def test_there_are_bugs_of_every_sort_and_each_has_a_name() -> None:
    assert len(BUGS) >= 20
    assert len({bug.what for bug in BUGS}) == len(BUGS)
