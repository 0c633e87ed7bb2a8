"""Jackknife influence of each test example on a score, for every metric, from a record's predictions.

    influence_i = (n - 1) (mean_j score_(j) - score_(i)),     score_(i): the score without example i

The jackknife is Efron's (The jackknife, the bootstrap and other resampling plans, SIAM 1982). The sampling covariance
of two scores on the same n examples is influence . influence' / (n (n - 1)). It is exact for means; for other smooth
scores it equals the bootstrap's asymptotically, at the cost of one pass. The formulas are those of
`peftbench.tasks.metrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Without = Callable[[Any, Any], Array]  # (predictions, labels) -> (1 + n,): the score, then it without each example

COUNTED = ("accuracy", "f1", "f1_macro", "mcc")  # of classes: one prediction moves them by about 1 / n
PIECE = 2_000_000  # entries of the rank matrix computed at once, to bound memory


def influences(metric: str, values: Sequence[Any], labels: Sequence[Any], score: float) -> Array | None:
    """Compute the jackknife influence of each test example on one score.

    Args:
        metric: name of the metric, a key of `SCORES`.
        values: n predictions as the record keeps them: classes, numbers or texts.
        labels: n labels in the same order; for generated text, each is a sequence of references.
        score: the recorded score; the predictions must reproduce it to a relative 1e-6.

    Returns:
        (n,) in the unit of the score. None if the metric needs more than predictions (perplexity of generated text),
        n is below 3, a value is undefined, or the predictions do not reproduce `score`.
    """
    n = len(labels)
    if metric not in SCORES or n < 3 or len(values) != n or not _is_for(metric, values, labels):
        return None
    with np.errstate(all="ignore"):
        scores = SCORES[metric](values, labels)
    if not np.isfinite(scores).all() or abs(scores[0] - score) > 1e-6 * max(1.0, abs(score)):
        return None
    return (n - 1) * (scores[1:].mean() - scores[1:])


def grain(metric: str, n: int) -> float:
    """The smallest change of a score by one example; 0 if the metric is continuous.

    Args:
        metric: name of the metric.
        n: number of test examples.
    """
    return 1 / n if metric in COUNTED and n else 0.0


def _is_for(metric: str, values: Sequence[Any], labels: Sequence[Any]) -> bool:
    """Whether the metric applies: a generation task also has metrics that need more than its texts."""
    if metric in ("bleu", "rougeL"):
        return isinstance(values[0], str) and not isinstance(labels[0], str)
    return all(isinstance(v, (int, float)) for v in (*values, *labels))


def _mean(each: Array) -> Array:
    total, n = each.sum(), len(each)
    return np.concatenate([[total / n], (total - each) / (n - 1)])


def _less(counts: Array) -> Array:
    """(n, ...) contribution of each example -> (1 + n, ...): the total, then the total without each example."""
    total = counts.sum(0, keepdims=True)
    return np.concatenate([total, total - counts])


def _accuracy(values: Any, labels: Any) -> Array:
    return _mean((np.asarray(values) == np.asarray(labels)).astype(float))


def _f1(values: Any, labels: Any) -> Array:
    p, y = np.asarray(values) == 1, np.asarray(labels) == 1
    hits, predicted, true = (_less(a.astype(float)) for a in (p & y, p, y))
    return 2 * hits / (predicted + true)


def _f1_macro(values: Any, labels: Any) -> Array:
    p, y = (np.asarray(a)[:, None] == np.unique(labels) for a in (values, labels))
    hits, predicted, true = (_less(a.astype(float)) for a in (p & y, p, y))
    each = np.where(true > 0, 2 * hits / np.maximum(predicted + true, 1), 0.0)
    return each.sum(1) / (true > 0).sum(1)


def _mcc(values: Any, labels: Any) -> Array:
    """Gorodkin's R_K (2004), equal to Matthews' for two classes; 0 for constant predictions, as in GLUE."""
    classes = np.unique(np.concatenate([values, labels]))
    p, y = (np.asarray(a)[:, None] == classes for a in (values, labels))
    n, right = _less(np.ones(len(p))), _less((p & y).any(1).astype(float))
    predicted, true = _less(p.astype(float)), _less(y.astype(float))
    cov = right * n - (predicted * true).sum(1)
    var_p, var_y = n**2 - (predicted**2).sum(1), n**2 - (true**2).sum(1)
    return np.where(var_p > 0, cov / np.sqrt(np.maximum(var_p, 1) * var_y), np.where(var_y > 0, 0, np.nan))


def _pearson(values: Any, labels: Any) -> Array:
    x, y = (np.asarray(a, dtype=float) for a in (values, labels))
    x, y = x - x.mean(), y - y.mean()
    n, sx, sy, sxx, syy, sxy = (_less(a) for a in (np.ones(len(x)), x, y, x * x, y * y, x * y))
    return (sxy - sx * sy / n) / np.sqrt((sxx - sx**2 / n) * (syy - sy**2 / n))


def _spearman(values: Any, labels: Any) -> Array:
    """Leaving out a smaller value lowers a rank by one, leaving out an equal value by a half."""
    x, y = (np.asarray(a, dtype=float) for a in (values, labels))
    n = len(x)
    rows = max(1, PIECE // n)
    pieces = [_spearman_without(x, y, np.arange(i, min(i + rows, n))) for i in range(0, n, rows)]
    return np.concatenate([_pearson(_ranks(x), _ranks(y))[:1], *pieces])


def _ranks(x: Array) -> Array:
    ordered = np.sort(x)
    return (np.searchsorted(ordered, x) + np.searchsorted(ordered, x, "right") + 1) / 2


def _spearman_without(x: Array, y: Array, left_out: NDArray[np.int_]) -> Array:
    n = len(x)
    u, v = (_ranks(a) - (a > a[left_out, None]) - 0.5 * (a == a[left_out, None]) - n / 2 for a in (x, y))
    here = np.arange(len(left_out))
    u[here, left_out] = v[here, left_out] = 0  # centred: zero removes the example
    return (u * v).sum(1) / np.sqrt((u * u).sum(1) * (v * v).sum(1))


def _mae(values: Any, labels: Any) -> Array:
    return _mean(np.abs(np.asarray(values, dtype=float) - np.asarray(labels, dtype=float)))


def _rmse(values: Any, labels: Any) -> Array:
    return np.sqrt(_mean((np.asarray(values, dtype=float) - np.asarray(labels, dtype=float)) ** 2))


def _perplexity(values: Any, labels: Any) -> Array:
    return np.exp(_less(np.asarray(values, dtype=float)) / _less(np.asarray(labels, dtype=float)))


def _bleu(values: Any, labels: Any) -> Array:
    import sacrebleu

    one = sacrebleu.BLEU(effective_order=True)  # only its counts are used; this avoids a warning per example
    counts = np.array([_bleu_counts(one, text, tuple(answers)) for text, answers in zip(values, labels, strict=True)])
    return np.array([_bleu_of(row) for row in _less(counts)])


def _bleu_counts(metric: Any, text: str, answers: tuple[str, ...]) -> list[float]:
    bleu = metric.sentence_score(text, list(answers))
    return [*bleu.counts, *bleu.totals, bleu.sys_len, bleu.ref_len]


def _bleu_of(row: Array) -> float:
    import sacrebleu

    numbers = [int(v) for v in row]
    return sacrebleu.BLEU.compute_bleu(numbers[:4], numbers[4:8], numbers[8], numbers[9], smooth_method="exp").score


def _rouge_l(values: Any, labels: Any) -> Array:
    each = [_rouge_of(text, tuple(answers)) for text, answers in zip(values, labels, strict=True)]
    return 100 * _mean(np.array(each))


@lru_cache(maxsize=100_000)  # methods repeat texts, and a report scores each twice
def _rouge_of(text: str, answers: tuple[str, ...]) -> float:
    return max(_rouge_scorer().score(answer, text)["rougeL"].fmeasure for answer in answers)


@lru_cache(maxsize=1)
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"])


SCORES: dict[str, Without] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "f1_macro": _f1_macro,
    "mcc": _mcc,
    "pearson": _pearson,
    "spearman": _spearman,
    "mae": _mae,
    "rmse": _rmse,
    "bleu": _bleu,
    "rougeL": _rouge_l,
    "perplexity": _perplexity,
}
