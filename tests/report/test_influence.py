"""What one example does to a score: against leaving each out with the official metric, for every metric there is."""

from __future__ import annotations

import random

import numpy as np
import pytest

from peftbench.report.stats import influence
from peftbench.tasks import metrics

WORDS = ["the", "a", "dog", "cat", "sat", "ran", "on", "mat", "house", "."]


def drawn(metric, n=40, seed=0):
    """(predictions, labels) that suit the metric and are right more often than not, with ties where it ranks."""
    rng = random.Random(seed)
    kind = metrics.METRICS[metric][0].kinds[0]
    if kind == "classification":
        labels = [rng.randrange(2 if metric == "f1" else 4) for _ in range(n)]
        return [y if rng.random() < 0.7 else rng.randrange(2) for y in labels], labels
    if kind == "regression":
        labels = [rng.randrange(6) * 1.0 for _ in range(n)]
        return [round(y + rng.gauss(0, 1), 1) for y in labels], labels
    if metric == "perplexity":
        return [rng.uniform(2, 30) for _ in range(n)], [rng.randrange(1, 12) for _ in range(n)]
    labels = [[" ".join(rng.choices(WORDS, k=9)) for _ in range(rng.randrange(1, 4))] for _ in range(n)]
    return [" ".join(w if rng.random() < 0.8 else "x" for w in rng.choice(a).split()) for a in labels], labels


@pytest.mark.slow
@pytest.mark.parametrize("metric", sorted(metrics.METRICS))
def test_leaving_each_example_out_gives_the_official_score_of_the_others(metric):
    values, labels = drawn(metric)
    n = len(labels)
    without = [metrics.score(metric, values[:i] + values[i + 1 :], labels[:i] + labels[i + 1 :]) for i in range(n)]
    found = influence.influences(metric, values, labels, metrics.score(metric, values, labels))
    expected = (n - 1) * (np.mean(without) - np.array(without))
    assert np.abs(expected).max() > 0
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_long_rankings_are_counted_in_pieces(monkeypatch):
    values, labels = drawn("spearman", n=50)
    score = metrics.score("spearman", values, labels)
    whole = influence.influences("spearman", values, labels, score)
    monkeypatch.setattr(influence, "PIECE", 7 * 50)
    assert influence.influences("spearman", values, labels, score) == pytest.approx(whole, abs=1e-12)


def test_the_variance_of_a_mean_is_that_of_its_examples():
    values, labels = drawn("accuracy")
    right = np.array(values) == np.array(labels)
    found = influence.influences("accuracy", values, labels, right.mean())
    n = len(right)
    assert (found**2).sum() / (n * (n - 1)) == pytest.approx(right.var(ddof=1) / n)


@pytest.mark.parametrize("metric", ["f1_macro", "mcc", "pearson", "spearman", "rmse"])
def test_the_jackknife_agrees_with_the_bootstrap_of_the_examples(metric):
    values, labels = (np.array(a) for a in drawn(metric, n=300))
    found = influence.influences(metric, values.tolist(), labels.tolist(), metrics.score(metric, values, labels))
    jackknife = np.sqrt((found**2).sum() / (300 * 299))
    rng = np.random.RandomState(0)
    again = [influence.SCORES[metric](values[i], labels[i])[0] for i in rng.randint(0, 300, (400, 300))]
    assert jackknife == pytest.approx(np.std(again), rel=0.15)


def test_predictions_that_do_not_give_the_recorded_score_are_not_used():
    values, labels = drawn("accuracy")
    score = metrics.score("accuracy", values, labels)
    assert influence.influences("accuracy", values, labels, score) is not None
    assert influence.influences("accuracy", values, labels, score + 0.01) is None


@pytest.mark.parametrize(
    ("metric", "values", "labels", "score"),
    [
        ("perplexity", ["a text", "b", "c"], [["a"], ["b"], ["c"]], 7.0),  # the record has texts, not likelihoods
        ("unheard_of", [1, 0, 1], [1, 0, 1], 1.0),
        ("pearson", [1.0, 1.0, 1.0], [1.0, 2.0, 3.0], 0.0),  # no value at all
        ("accuracy", [1, 0], [1, 0], 1.0),  # too few to leave one out
    ],
)
def test_where_nothing_is_known_of_the_examples_it_says_so(metric, values, labels, score):
    assert influence.influences(metric, values, labels, score) is None
