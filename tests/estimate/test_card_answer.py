"""Does it fit, what would make it fit, and what does it cost: every change is simulated again here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from peftbench.errors import UserError
from peftbench.estimate.card import changes, fits
from peftbench.estimate.card.card_answer import Answer, answer
from peftbench.estimate.card.cards import Card
from peftbench.estimate.card.changes import Change
from peftbench.estimate.card.fits import Program, Question
from peftbench.estimate.count import ModelQuery
from peftbench.estimate.program import programs
from peftbench.estimate.step_estimate import Setting, StepEstimate, estimate

_known: dict[str, StepEstimate] = {}  # the tests ask for many steps more than once


def _estimator(model: str = "tiny-decoder") -> Callable[[Program], StepEstimate]:
    def at(p: Program) -> StepEstimate:
        key = f"{model} {p}"
        if key not in _known:
            _known[key] = estimate(ModelQuery(model), p.method, p.hyper, p.setting)
        return _known[key]

    return at


def _card(memory: int) -> Card:
    return Card("small", memory / 2**30, 1e11, 4.0, 1e13, 1e12, None, 100.0, 1e10, "0.0", "a card for tests")


def _asked(memory: int, program: Program, model: str = "tiny-decoder", **more: Any) -> Answer:
    return answer(program, Question(_card(memory), context=0, **more), _estimator(model))


PROGRAM = Program("lora", {"rank": 4}, Setting(8, 64))


@pytest.fixture(scope="module")
def needed() -> int:
    return _estimator()(PROGRAM).peak_bytes


def test_a_step_fits_up_to_the_last_byte(needed: int) -> None:
    estimated = _estimator()(PROGRAM)
    assert fits.fits(estimated, _card(needed + 1024), 0)
    assert not fits.fits(estimated, _card(needed - 1024), 0)
    assert not fits.fits(estimated, _card(needed + 1024), 2048)  # the context needs room as well


@pytest.mark.slow
def test_the_largest_batch_fits_and_a_larger_one_does_not(needed: int) -> None:
    found = _asked(needed + 1024, PROGRAM)
    assert found.fits
    assert found.changes == ()
    batch = found.largest_batch.value
    settings = [replace(PROGRAM.setting, batch=b) for b in (batch, batch + 1)]
    peaks = [_estimator()(replace(PROGRAM, setting=s)).peak_bytes for s in settings]
    assert peaks[0] <= needed + 1024 < peaks[1]
    assert not found.largest_batch.ends_with_positions


@pytest.mark.slow
def test_every_change_really_fits(needed: int) -> None:
    memory = int(0.6 * needed)
    found = _asked(memory, PROGRAM)
    assert not found.fits
    own = [change for change in found.changes if change.card == "small"]
    assert own
    for change in own:
        again = _estimator()(change.program).peak_bytes
        assert again == change.needed_bytes <= memory, change.what
    assert "--checkpointing" in [change.what for change in own] or "--batch 4" in [change.what for change in own]


@pytest.mark.slow
def test_changes_come_by_the_time_of_cards_that_they_take(needed: int) -> None:
    offered = _asked(int(0.6 * needed), PROGRAM).changes
    took = [change.seconds * change.gpus for change in offered if change.seconds is not None]
    assert len(took) == len(offered) > 1
    assert took == sorted(took)


@pytest.mark.slow
def test_the_largest_of_smaller_batches_is_offered_once(needed: int) -> None:
    offered = [c for c in _asked(int(0.6 * needed), PROGRAM).changes if c.what.startswith("--batch")]
    assert [c.what for c in offered] == ["--batch 4"]
    assert "2 passes" in offered[0].remark


@pytest.mark.slow
def test_a_pair_is_named_where_no_single_change_is_enough() -> None:
    at = _estimator()
    program = Program("lora", {}, Setting(1, 96, attention="math"))
    smallest = min(at(p).peak_bytes for p in _singles(program))
    both = at(replace(program, setting=replace(program.setting, checkpointing=True, dtype="bfloat16"))).peak_bytes
    assert both < smallest
    found = _pair(program, smallest - 1024)
    assert found is not None
    assert at(found.program).peak_bytes == found.needed_bytes <= smallest - 1024


def _singles(program: Program) -> list[Program]:
    s = program.setting
    changed = [replace(s, **c) for c in ({"checkpointing": True}, {"attention": "flash"}, {"dtype": "bfloat16"})]
    return [replace(program, setting=c) for c in changed]


def _pair(program: Program, memory: int) -> Change | None:
    return changes.pair(program, Question(_card(memory), context=0), _estimator(), _estimator()(program))


OTHER = replace(PROGRAM, setting=replace(PROGRAM.setting, program=programs.program("hf-trainer")))


@pytest.mark.slow
def test_what_another_program_reserves_decides_the_largest_batch() -> None:
    limit = fits.needed_bytes(_estimator()(OTHER), 0)
    question = Question(_card(limit), context=0)
    batch = fits.largest("batch", OTHER, question, _estimator()).value
    settings = [replace(OTHER.setting, batch=b) for b in (batch, batch + 1)]
    needs = [fits.needed_bytes(_estimator()(replace(OTHER, setting=s)), 0) for s in settings]
    assert needs[0] <= limit < needs[1]


@pytest.mark.slow
def test_changes_of_another_programs_step_are_parts_of_it() -> None:
    program = replace(OTHER, setting=replace(OTHER.setting, batch=64, seq=96))
    at = _estimator()
    parts = replace(program.setting, program=replace(programs.PROGRAMS["hf-trainer"][0], checkpointing=True))
    limit = fits.needed_bytes(at(replace(program, setting=parts)), 0)
    assert limit < fits.needed_bytes(at(program), 0)
    offered = changes.single(program, Question(_card(limit), context=0), at, at(program))
    found = next(c for c in offered if c.what == "--checkpointing")
    assert found.program.setting == parts
    assert found.needed_bytes == limit


@pytest.mark.parametrize(("gpus", "said", "on"), [(1, "--shards 2 --gpus 2", 2), (3, "--shards 2 --gpus 4", 4)])
def test_shards_are_offered_on_cards_that_they_divide(gpus: int, said: str, on: int) -> None:
    program, at = Program("lora", {}, Setting(1, 8)), _estimator()
    option = next(changes._shards(program, at(program)))
    made = changes._made(option, program, Question(_card(2**30), gpus=gpus), at)
    assert made is not None
    assert (made.what, made.gpus) == (said, on)


@pytest.mark.slow
def test_nothing_is_offered_where_nothing_fits() -> None:
    found = _asked(2**14, Program("lora", {}, Setting(1, 8)))
    assert not found.fits
    assert [c for c in found.changes if c.card == "small"] == []
    assert found.largest_batch.value == 0


@pytest.mark.slow
def test_the_networks_positions_end_the_search_where_memory_does_not() -> None:
    question = Question(_card(2**28), context=0, positions=128)
    program = Program("lora", {}, Setting(1, 16))
    assert fits.largest("seq", program, question, _estimator("tiny-encoder")) == fits.Largest(128, True)


@pytest.mark.parametrize("peak", [lambda n: 100 + 7 * n, lambda n: 50 + n * n, lambda n: 1000 + 900 * (n > 37) + n])
@pytest.mark.parametrize("start", [1, 20, 64, 500])
@pytest.mark.parametrize("limit", [101, 1100, 5000])
def test_the_search_finds_the_last_value_that_fits(peak: Callable[[int], int], start: int, limit: int) -> None:
    asked: list[int] = []
    estimated = _estimator()(PROGRAM)

    def at(p: Program) -> StepEstimate:
        asked.append(p.setting.batch)
        return replace(estimated, peak_bytes=peak(p.setting.batch))

    found = fits.largest("batch", Program("lora", {}, Setting(start, 8)), Question(_card(limit), context=0), at)
    fitting = [n for n in range(1, 5000) if peak(n) <= limit]
    assert found.value == max(fitting, default=0)
    assert len(asked) == len(set(asked)) < 30


def test_the_bill_counts_every_text_once_an_epoch() -> None:
    question = Question(_card(2**30), gpus=2, examples=1000, epochs=3, price=1.5)
    found = fits.bill(2.0, 8, question)
    assert found is not None
    assert found.steps == 188  # 3,000 texts, 16 at once
    assert found.hours == pytest.approx(188 * 2 / 3600)
    assert found.kwh == pytest.approx(2 * 0.1 * found.hours)
    assert found.money == pytest.approx(1.5 * 2 * found.hours)
    assert fits.bill(2.0, 8, Question(_card(2**30))) is None


def test_several_cards_send_their_gradients() -> None:
    estimated = _estimator()(PROGRAM)
    alone, two = (fits.seconds(estimated, Question(_card(2**30), gpus=n)) for n in (1, 2))
    assert alone is not None
    assert two is not None
    assert two.seconds - alone.seconds == pytest.approx(2 * 4 * estimated.trainable / 1e10)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"gpus": 0}, "--gpus 0"),
        ({"examples": 0}, "--examples 0"),
        ({"epochs": 0.0}, "--epochs 0.0"),
        ({"price": -1.0}, "--price -1.0"),
        ({"price": float("nan")}, "--price nan"),
    ],
)
def test_a_wrong_question_is_the_users_mistake(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Question(_card(2**30), **wrong)


def test_cards_come_in_sets_of_shards() -> None:
    with pytest.raises(UserError, match="--gpus 3 with --shards 2: give a multiple"):
        Question(_card(2**30), gpus=3).check(Setting(1, 8, shards=2))
