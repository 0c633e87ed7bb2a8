"""Metrics: against values worked out by hand or by the defining formula; undefined is None."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernels import KERNELS, process_environment
from scipy import stats

from peftbench import tasks
from peftbench.errors import UserError
from peftbench.tasks import metrics


def test_the_classification_metrics_match_hand_counts() -> None:
    predicted, true = [1, 1, 0, 0, 1, 0], [1, 0, 0, 1, 1, 0]  # TP 2, FP 1, FN 1, TN 2
    assert metrics.score("accuracy", predicted, true) == pytest.approx(4 / 6)
    assert metrics.score("f1", predicted, true) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert metrics.score("mcc", predicted, true) == pytest.approx((2 * 2 - 1 * 1) / math.sqrt(3 * 3 * 3 * 3))
    assert metrics.score("f1_macro", predicted, true) == pytest.approx(2 / 3)


def test_macro_f1_counts_a_class_never_predicted_as_zero() -> None:
    assert metrics.score("f1_macro", [0, 0, 0, 1], [0, 0, 2, 1]) == pytest.approx((4 / 5 + 1 + 0) / 3)


def test_the_regression_metrics_match_their_formulas() -> None:
    predicted, true = [1.0, 2.0, 4.0, 3.0], [1.0, 2.0, 3.0, 10.0]
    assert metrics.score("pearson", predicted, true) == pytest.approx(float(np.corrcoef(predicted, true)[0, 1]))
    assert metrics.score("spearman", predicted, true) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert metrics.score("mae", predicted, true) == 2.0
    assert metrics.score("rmse", predicted, true) == pytest.approx(math.sqrt(50 / 4))


@pytest.mark.parametrize("name", ["pearson", "spearman"])
@pytest.mark.parametrize(
    ("predicted", "true"),
    [([2.0, 2.0, 2.0], [1.0, 2.0, 3.0]), ([1.0, 2.0], [5.0, 5.0]), ([1.0], [2.0]), ([1.0, math.nan], [1.0, 2.0])],
)
def test_a_correlation_that_does_not_exist_is_none(name: str, predicted: list[float], true: list[float]) -> None:
    assert metrics.score(name, predicted, true) is None


@given(st.lists(st.tuples(st.floats(), st.floats()), min_size=1, max_size=20))
def test_no_regression_metric_is_ever_nan_or_infinite(pairs: list[tuple[float, float]]) -> None:
    for name in metrics.for_kind("regression"):
        value = metrics.score(name, [a for a, _ in pairs], [b for _, b in pairs])
        assert value is None or math.isfinite(value)


def drawn(seed: int) -> tuple[list[float], list[float]]:
    """Predictions and labels as a regression task has them: labels in steps with ties, predictions near them."""
    draw = random.Random(seed)
    size, noise, offset = draw.choice([5, 30, 300, 1500]), draw.choice([0.1, 1.0, 30.0]), draw.choice([0.0, 3.0])
    labels = [draw.randrange(26) / 5 for _ in range(size)]
    return [offset + y + draw.gauss(0, noise) for y in labels], labels


@pytest.mark.parametrize("seed", range(40))
def test_correlations_agree_with_scipy_to_four_units_in_the_last_place(seed: int) -> None:
    predicted, true = drawn(seed)
    for name, scipys in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        expected = float(scipys(predicted, true).statistic)
        assert abs(metrics.score(name, predicted, true) - expected) <= 4 * math.ulp(1.0), name  # type: ignore[operator]


def test_correlations_do_not_overflow_and_stay_in_their_range() -> None:
    large = [1e308, -1e308, 1.5e308, 3e307]
    assert metrics.score("pearson", large, [v / 1e308 for v in large]) == pytest.approx(1.0, abs=1e-15)
    tiny = [5e-324, 0.0, 1e-323, 5e-324]
    assert metrics.score("pearson", tiny, [1.0, 0.0, 2.0, 1.0]) == pytest.approx(1.0, abs=1e-15)
    for seed in range(200):
        predicted, true = drawn(seed)[1][:5], [3 * v + 0.1 for v in drawn(seed)[1][:5]]
        for name in ("pearson", "spearman"):
            value = metrics.score(name, predicted, true)
            assert value is None or -1 <= value <= 1


CHILD = """
import json, sys, threadpoolctl
from peftbench.tasks import metrics
import numpy
found = [metrics.score(name, *pair) for pair in json.load(sys.stdin) for name in metrics.for_kind("regression")]
print(json.dumps([[info["architecture"] for info in threadpoolctl.threadpool_info() if "architecture" in info], found]))
"""


@pytest.mark.parametrize("kernel", KERNELS)
def test_scores_have_the_same_bits_with_every_kernel_of_the_blas(kernel: str | None) -> None:
    environment = process_environment(kernel)
    pairs = [drawn(seed) for seed in range(20)]
    command = [sys.executable, "-c", CHILD]
    done = subprocess.run(command, input=json.dumps(pairs), env=environment, capture_output=True, text=True, check=True)
    kernels, found = json.loads(done.stdout)
    assert kernels
    assert kernel is None or set(kernels) == {kernel}, "the variable had no effect: this test shows nothing"
    assert found == [metrics.score(name, *pair) for pair in pairs for name in metrics.for_kind("regression")]


def test_undefined_classification_values_are_none_and_glues_zero_stays() -> None:
    assert metrics.score("f1", [0, 0], [0, 0]) is None
    assert metrics.score("f1", [0, 0], [0, 1]) == 0.0
    assert metrics.score("mcc", [1, 1], [0, 1]) == 0.0  # as GLUE's scorer defines it
    assert metrics.score("mcc", [0, 1], [1, 1]) is None


def test_bleu_counts_every_reference_though_their_number_differs() -> None:
    hypotheses = ["the cat sat on the mat today", "a dog ran home very fast"]
    references = [["nothing alike here at all", "the cat sat on the mat today"], ["a dog ran home very fast"]]
    assert metrics.score("bleu", hypotheses, references) == pytest.approx(100.0)
    assert metrics.score("bleu", hypotheses, [r[:1] for r in references]) < 60  # type: ignore[operator]


def test_rouge_takes_the_best_reference_and_matches_a_hand_count() -> None:
    # longest common subsequence "the cat the mat": 4 of 6 and 4 of 5 words
    by_hand = 100 * 2 * (4 / 6) * (4 / 5) / (4 / 6 + 4 / 5)
    references = [["entirely different words", "the cat on the mat"]]
    assert metrics.score("rougeL", ["the cat sat by the mat"], references) == pytest.approx(by_hand)


def test_perplexity_weighs_tokens_not_examples() -> None:
    assert metrics.score("perplexity", [math.log(2) * 3, math.log(8)], [3, 1]) == pytest.approx(2 ** (6 / 4))
    assert metrics.score("perplexity", [1e6], [1]) is None
    assert metrics.score("perplexity", [100.0], [1]) is None, "beyond what a record holds"


def test_arrays_are_scored_like_lists() -> None:
    assert metrics.score("accuracy", np.array([1, 0]), np.array([1, 1])) == 0.5


@pytest.mark.parametrize("predicted", [[], [1]])
def test_a_different_number_of_predictions_is_an_error(predicted: list[int]) -> None:
    with pytest.raises(ValueError, match="predictions for"):
        metrics.score("accuracy", predicted, [] if not predicted else [1, 0])


def test_f1_of_three_classes_is_an_error_and_an_unknown_metric_is_answered() -> None:
    with pytest.raises(ValueError, match="f1_macro"):
        metrics.score("f1", [2, 0], [1, 0])
    with pytest.raises(UserError, match="did you mean 'accuracy'"):
        metrics.direction("acuracy")


def test_directions_are_known_for_all_metrics_of_all_tasks() -> None:
    assert {m for m in metrics.METRICS if metrics.direction(m) == "min"} == {"mae", "rmse", "perplexity"}
    for name in tasks.names():
        assert set(tasks.card(name).metrics) <= set(metrics.for_kind(tasks.card(name).kind))


def test_the_majority_is_learned_from_train_and_scored_on_test() -> None:
    import dataclasses

    d = tasks.open_task("synthetic/pair")
    skewed = dataclasses.replace(d, train=tuple(e for e in d.train if e.label == 1), test=d.test[:5])
    true = [e.label for e in skewed.test]
    assert metrics.majority(skewed) == {
        "accuracy": metrics.score("accuracy", [1] * 5, true),
        "f1": metrics.score("f1", [1] * 5, true),
    }
    assert metrics.majority(tasks.open_task("synthetic/regression")) == {"spearman": None, "pearson": None}
    assert set(metrics.majority(tasks.open_task("synthetic/generation")).values()) == {None}
