"""The contract is worth what it catches: every planted bug breaks a promise, and every promise breaks for some bug."""

from __future__ import annotations

import pytest
from contract_cases import is_in_make_test
from planted_bugs import BUGS, Bug

from peftbench.verify.contract import PROMISES, Case, check, variants

ONLY_IN_A_SETTING = [bug for bug in BUGS if bug.hyper]
SOUND = {promise.__name__: promise for promise in PROMISES}


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
@pytest.mark.parametrize("bug", BUGS, ids=[b.what for b in BUGS])
def test_a_planted_bug_is_caught_by_the_promise_it_breaks(monkeypatch: pytest.MonkeyPatch, bug: Bug) -> None:
    bug.patch(monkeypatch)
    for name in bug.caught_by:
        verdict = check(bug.case, [SOUND[name]])[0]
        assert not verdict.kept, f"{name} does not notice that {bug.what}"


@pytest.mark.parametrize("bug", BUGS, ids=[b.what for b in BUGS])
def test_a_planted_bug_is_caught_by_what_make_test_tries(bug: Bug) -> None:
    assert bug.hyper == {} or bug.hyper in variants(bug.method), "the contract has no such setting"
    left_out = [name for name in bug.caught_by if not is_in_make_test(bug.case, SOUND[name])]
    assert left_out == [], "only the full matrix tries these"


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
@pytest.mark.parametrize("bug", ONLY_IN_A_SETTING, ids=[b.what for b in ONLY_IN_A_SETTING])
def test_the_defaults_hide_what_only_a_setting_shows(bug: Bug) -> None:
    at_defaults = check(Case(bug.method, {}, bug.network), [SOUND[name] for name in bug.caught_by])
    assert [str(verdict) for verdict in at_defaults if not verdict.kept] == []


def test_every_promise_catches_a_planted_bug() -> None:
    caught = {name for bug in BUGS for name in bug.caught_by}
    assert caught == {p.__name__ for p in PROMISES}


def test_there_are_bugs_of_every_sort_and_each_has_a_name() -> None:
    assert len(BUGS) >= 20
    assert len({bug.what for bug in BUGS}) == len(BUGS)
