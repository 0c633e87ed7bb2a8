"""Pairs that are equally far apart in every seed: what is decided of them, and what a reader is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import factories
import pytest

from peftbench.report import assemble
from peftbench.report.data import answer, decisions, pairs, verdicts
from peftbench.report.data.comparison import Comparison
from peftbench.report.tables import answers
from peftbench.report.web import wording

EQUAL = {"full": (0.81, 0.82, 0.80), "lora": (0.71, 0.72, 0.70), "ia3": (0.81, 0.82, 0.80)}
OTHERS = {"dora": (0.81, 0.83, 0.80), "prefix": (0.808, 0.821, 0.799), "qlora": (0.812, 0.818, 0.801)}


def table(folder: Path, scores: Mapping[str, Sequence[float]]) -> Comparison:
    factories.write_all(
        folder, [factories.run(label, s, v) for label, values in scores.items() for s, v in enumerate(values)]
    )
    (c,) = assemble.load(folder).comparisons
    return c


def test_a_difference_that_is_the_same_in_every_seed_decides_nothing_by_itself(tmp_path: Path) -> None:
    """Neither that the two are equal nor that one is better, as without a spread there is no interval."""
    c = table(tmp_path, EQUAL)
    margin = decisions.margin_of(c)
    assert {key: p.how(margin) for key, p in pairs.of(c).items()} == dict.fromkeys(pairs.of(c))
    told = answer.of(c)
    assert told is not None
    assert set(told.open) == {"full", "lora", "ia3"}
    assert verdicts.of(c)["lora"].p_holm is None


def test_the_reader_is_told_why_it_is_not_decided(tmp_path: Path) -> None:
    c = table(tmp_path, EQUAL)
    reason = "full, ia3 and lora: a difference that is the same in every seed has no spread"
    assert reason in wording.of(c)[-1]
    assert any(reason in sentence for sentence in answers.sentences(c))


def test_where_other_rows_show_what_is_usual_it_has_that_spread(tmp_path: Path) -> None:
    c = table(tmp_path, {**EQUAL, **OTHERS})
    same = pairs.of(c)["full", "ia3"]
    usual = [p.gap.parts[0][0] for (a, b), p in pairs.of(c).items() if b == "ia3" and a in OTHERS]
    assert same.gap.value == 0
    assert min(usual) / 10 < same.gap.parts[0][0] < max(usual)
    assert same.how(decisions.margin_of(c)) == "equal"
    assert pairs.of(c)["full", "lora"].how(decisions.margin_of(c)) == "better"
    assert "no spread" not in " ".join(wording.of(c))


@pytest.mark.parametrize("moved", ["full", "ia3"])
def test_the_last_digit_of_a_score_changes_no_verdict(tmp_path: Path, moved: str) -> None:
    noisy = {**EQUAL, **OTHERS, moved: tuple(v * (1 + 2e-16) for v in EQUAL[moved])}
    one, other = table(tmp_path / "a", {**EQUAL, **OTHERS}), table(tmp_path / "b", noisy)
    margin = decisions.margin_of(one)
    assert {k: p.how(margin) for k, p in pairs.of(one).items()} == {
        k: p.how(margin) for k, p in pairs.of(other).items()
    }
    assert pairs.of(one)["full", "ia3"].high == pytest.approx(pairs.of(other)["full", "ia3"].high, rel=1e-6)
