"""`peftbench estimate --gpu`: one line that answers, exit codes, JSON, and options that do not go together."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from commands import Call, called

from peftbench.cli.card_view import _headline
from peftbench.errors import UserError
from peftbench.estimate.card import prices
from peftbench.estimate.card.card_answer import Answer
from peftbench.estimate.card.cards import card
from peftbench.estimate.card.fits import Bill, Largest
from peftbench.estimate.card.step_seconds import StepSeconds

LORA = ("estimate", "tiny-decoder", "lora")
SMALL = ("--context", "22.02GiB")  # leaves some MiB, so that few sizes are tried


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    return called(monkeypatch, capsys, tmp_path)


@pytest.mark.slow
def test_the_first_line_answers(call: Call) -> None:
    done = call(
        *LORA, "--gpu", "L4", "--seq", "32", *SMALL, "--examples", "3600", "--price", "1.2", "--currency", "EUR"
    )
    assert done.code == 0, done.err
    first = done.out.splitlines()[0]
    assert first.startswith("fits on l4: ")
    for part in ("of 22.03 GiB", "largest batch", "longest text", "a step", ", at most", "kWh", "EUR"):
        assert part in first
    simulated = [line for line in done.err.splitlines() if line.startswith("simulating ")]
    assert simulated[0] == "simulating batch 1, 32 tokens ..."
    assert re.fullmatch(
        r"fits on l4: .* of 22.03 GiB, .* a step; looking for what else fits \.\.\.", done.err.splitlines()[1]
    )
    assert len(simulated) == len(set(simulated)) > 2
    assert "positions" in done.out
    assert "not verified" in done.out


@pytest.mark.slow
def test_what_does_not_fit_exits_with_1_and_says_what_would(call: Call) -> None:
    done = call(*LORA, "--gpu", "l4", "--seq", "16", *SMALL, "--batch", "128")
    assert done.code == 1, done.err
    assert done.out.startswith("does not fit on l4: ")
    assert "single changes that make it fit" in done.out
    assert "simulating batch 128, 16 tokens, checkpointing=True ..." in done.err
    assert "simulating batch 128, 16 tokens, qlora ..." in done.err
    assert "--gpu " in done.out


@pytest.mark.slow
def test_json_has_the_same(call: Call) -> None:
    done = call(*LORA, "--gpu", "l4", "--seq", "16", *SMALL, "--json")
    found = json.loads(done.out)
    assert found["fits"] is True
    assert found["card"]["name"] == "l4"
    assert found["needed_bytes"] == found["estimate"]["peak_bytes"] + found["context_bytes"]
    assert found["step"]["seconds"] > 0
    assert found["largest_batch"]["value"] > 1


@pytest.mark.slow
def test_prices_come_from_a_file(call: Call, tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "docs" / "examples" / "prices.yaml"
    done = call(*LORA, "--gpu", "l4", "--seq", "16", *SMALL, "--examples", "1000", "--prices", str(example), "--json")
    found = json.loads(done.out)
    assert found["bill"]["money"] == pytest.approx(0.5 * found["bill"]["hours"])
    own = tmp_path / "prices.yaml"
    own.write_text("currency: EUR\ndate: 2026-11-29\nsource: us\nhourly: {h100: 2}\n")
    wrong = call(*LORA, "--gpu", "l4", "--examples", "10", "--prices", str(own))
    assert wrong.code == 2
    assert "has no price of l4" in wrong.err
    own.write_text("currency: EUR\ndate: 2026-11-29\nsource: us\nhourly: {l4: 2, L4: 3}\n")
    assert "two prices of l4" in call(*LORA, "--gpu", "l4", "--examples", "10", "--prices", str(own)).err
    own.write_text("currency: EUR\ndate: 2026-11-29\nsource: us\nhourly: {l5: 2}\n")
    assert f"{own}: unknown card 'l5'" in call(*LORA, "--gpu", "l4", "--examples", "10", "--prices", str(own)).err
    own.write_text("currency: EUR\ndate: 2026-11-29\nsource: us\nhourly: {h100: cheap}\n")
    assert "price of h100 is 'cheap'" in call(*LORA, "--gpu", "l4", "--examples", "10", "--prices", str(own)).err


def _bill(hours: float) -> str:
    """The line that answers, for a training of some hours."""
    one = card("l4")
    bill = Bill(10, hours, one.watts * hours / 1000, 0.5 * hours)
    step = StepSeconds(3600 * hours / 10, 0.0, 0.0, 0.0, 0.0, 0.0, {})
    known = Largest(1, False)
    return _headline(Answer(True, one, 1, 1, 0, step, bill, "EUR", known, known, (), None, None, ""))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("hours", "said"),
    [
        (1234.5, "1,234.50 hours, at most 88.88 kWh, 617.25 EUR"),
        (0.25, "0.25 hours, at most 0.018 kWh, 0.12 EUR"),
        (0.02, "1.20 minutes, at most 0.0014 kWh, 0.01 EUR"),
        (0.002, "7.2 seconds, at most 0.00014 kWh, 0.001 EUR"),
    ],
)
def test_a_short_training_takes_minutes_or_seconds_and_not_0_hours(hours: float, said: str) -> None:
    assert _bill(hours).endswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hourly:\n  l4: 2\n  l4: 3\n", "line 6: the key 'l4' is given twice (first in line 5); keep one of them"),
        ("hourly: {3090: 2, 3090: 3}\n", "line 4: the key 3090 is given twice"),
        ("hourly: {l4: 2}\ncurrency: USD\n", "line 5: the key 'currency' is given twice (first in line 1)"),
    ],
)
def test_a_key_that_stands_twice_in_a_file_of_prices_is_refused(tmp_path: Path, text: str, said: str) -> None:
    own = tmp_path / "prices.yaml"
    own.write_text(f"currency: EUR\ndate: 2026-11-29\nsource: us\n{text}")
    with pytest.raises(UserError, match=re.escape(f"{own}: {said}")):
        prices.read(own)


def test_a_file_of_prices_may_merge_and_write_a_cards_number_alone(tmp_path: Path) -> None:
    own = tmp_path / "prices.yaml"
    own.write_text("currency: EUR\ndate: 2026-11-29\nsource: us\nhourly: {<<: {l4: 2, t4: 1}, l4: 3, 3090: 4}\n")
    assert prices.read(own).hourly == {"l4": 3.0, "t4": 1.0, "rtx-3090": 4.0}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--gpu", "l40"), "unknown card 'l40'; did you mean"),
        (("--price", "1"), "--price goes with --gpu CARD"),
        (("--fit-axis", "seq"), "--fit-axis seq goes with --fit SIZE"),
        (("--gpu", "l4", "--fit", "8GB"), "--gpu goes with none of"),
        (("--gpu", "l4", "--price", "1"), "go with --examples"),
        (("--gpu", "l4", "--examples", "5", "--currency", "EUR"), "--currency goes with --price"),
        (("--gpu", "l4", "--context", "much"), "--context: "),
        (("--gpu", "l4", "--gpus", "3", "--shards", "2"), "give a multiple of the shards"),
        (("--gpu", "l4", "--examples", "5", "--prices", "nowhere.yaml"), "nowhere.yaml"),
    ],
)
def test_options_that_do_not_go_together_are_refused(call: Call, options: tuple[str, ...], said: str) -> None:
    done = call(*LORA, *options)
    assert done.code == 2
    assert said in done.err
