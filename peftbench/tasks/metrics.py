"""The tasks' official metrics: counts from scikit-learn, texts from sacrebleu and rouge-score, sums of floats here.

A sum of floats is `math.fsum`, which rounds once. NumPy and SciPy call a BLAS, whose kernel depends on the processor,
and Python's own `sum` depends on its version: both change the last digits of a score of equal predictions.

A value that does not exist (the correlation with a constant, an F1 without any positive) is None: never NaN, and never
a 0 that looks like a measurement. The one exception is MCC of constant predictions, which GLUE's official scorer
defines as 0. BLEU and ROUGE-L are on the scale 0 to 100 on which papers report them; all else is unscaled.
"""

from __future__ import annotations

import math
import operator
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from peftbench.errors import unknown
from peftbench.records import ranges
from peftbench.tasks.dataset import Dataset

Score = Callable[[Sequence[Any], Sequence[Any]], "float | None"]


@dataclass(frozen=True)
class Metric:
    """What a metric is for. Its direction and range are in `records.ranges`, with which records are checked."""

    kinds: tuple[str, ...]
    what: str


def accuracy(predictions: Sequence[int], references: Sequence[int]) -> float:
    """Share of equal class indices."""
    return sum(p == r for p, r in zip(predictions, references, strict=True)) / len(references)


def f1(predictions: Sequence[int], references: Sequence[int]) -> float | None:
    """F1 of class 1 among two, as in GLUE; None where neither side has a positive."""
    if max((*predictions, *references)) > 1:
        raise ValueError("f1 is for two classes; use f1_macro for more")
    if not any(predictions) and not any(references):
        return None
    from sklearn.metrics import f1_score

    return float(f1_score(references, predictions, pos_label=1, zero_division=0.0))


def f1_macro(predictions: Sequence[int], references: Sequence[int]) -> float:
    """Mean F1 over the classes that occur in the references."""
    from sklearn.metrics import f1_score

    present = sorted(set(references))
    return float(f1_score(references, predictions, labels=present, average="macro", zero_division=0.0))


def mcc(predictions: Sequence[int], references: Sequence[int]) -> float | None:
    """Matthews correlation; 0 for constant predictions (GLUE's definition), None where the references are constant."""
    if len(set(references)) < 2:
        return None
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(references, predictions))


def pearson(predictions: Sequence[float], references: Sequence[float]) -> float | None:
    """Linear correlation; None where either side is constant, not finite, or shorter than two."""
    return _correlation(predictions, references) if _has_correlation(predictions, references) else None


def spearman(predictions: Sequence[float], references: Sequence[float]) -> float | None:
    """Rank correlation; None where either side is constant, not finite, or shorter than two."""
    if not _has_correlation(predictions, references):
        return None
    return _correlation(_ranks(predictions), _ranks(references))


def mae(predictions: Sequence[float], references: Sequence[float]) -> float | None:
    """Mean absolute error, in the label's unit."""
    return _finite(_sum(abs(p - r) for p, r in zip(predictions, references, strict=True)) / len(references))


def rmse(predictions: Sequence[float], references: Sequence[float]) -> float | None:
    """Root of the mean squared error, in the label's unit."""
    squares = [(p - r) * (p - r) for p, r in zip(predictions, references, strict=True)]  # ** would raise on overflow
    return _finite(math.sqrt(_sum(squares) / len(squares)))


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU-4, 0 to 100; `references[i]` are all the right answers to example i (their number may differ)."""
    import sacrebleu

    most = max(len(r) for r in references)
    # sacrebleu's own sign for "this example has fewer references" is None, which its annotations do not know
    streams: list[Any] = [[r[i] if i < len(r) else None for r in references] for i in range(most)]
    return float(sacrebleu.BLEU().corpus_score(list(predictions), streams).score)


def rouge_l(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean over the examples of the ROUGE-L F-measure with the best reference, 0 to 100; no stemming."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    best = [
        max(scorer.score(reference, p)["rougeL"].fmeasure for reference in answers)
        for p, answers in zip(predictions, references, strict=True)
    ]
    return 100.0 * _sum(best) / len(best)


def perplexity(predictions: Sequence[float], references: Sequence[int]) -> float | None:
    """exp(total negative log-likelihood / total tokens): one sum in nats and one number of tokens per example."""
    mean = _sum(predictions) / sum(references)
    return _finite(math.exp(mean)) if mean < 700 else None  # exp overflows a float64 there


METRICS: dict[str, tuple[Metric, Score]] = {
    "accuracy": (Metric(("classification",), "share of right answers"), accuracy),
    "f1": (Metric(("classification",), "F1 of class 1 of two"), f1),
    "f1_macro": (Metric(("classification",), "mean F1 over the classes"), f1_macro),
    "mcc": (Metric(("classification",), "Matthews correlation"), mcc),
    "pearson": (Metric(("regression",), "linear correlation"), pearson),
    "spearman": (Metric(("regression",), "rank correlation"), spearman),
    "mae": (Metric(("regression",), "mean absolute error"), mae),
    "rmse": (Metric(("regression",), "root mean squared error"), rmse),
    "bleu": (Metric(("generation",), "corpus BLEU-4, 0 to 100"), bleu),
    "rougeL": (Metric(("generation",), "ROUGE-L F-measure, 0 to 100"), rouge_l),
    "perplexity": (Metric(("generation",), "perplexity of the answer's tokens"), perplexity),
}


def score(name: str, predictions: Sequence[Any], references: Sequence[Any]) -> float | None:
    """The metric `name`, or None where it is undefined.

    Classification: class indices. Regression: floats. bleu, rougeL: a text, and a sequence of texts, per example.
    perplexity: the summed negative log-likelihood in nats, and the number of tokens, per example.
    """
    if len(predictions) != len(references) or not len(references):
        raise ValueError(f"{name}: {len(predictions)} predictions for {len(references)} references")
    return _known(name)[1](_plain(predictions), _plain(references))


def direction(name: str) -> str:
    """ "max" where more is better, else "min"."""
    _known(name)
    return ranges.SCORES[name].direction


def for_kind(kind: str) -> list[str]:
    """The metrics that fit a kind of task, the usual primary one first."""
    return [name for name, (metric, _) in METRICS.items() if kind in metric.kinds]


def majority(prepared: Dataset) -> dict[str, float | None]:
    """Each metric on the test split of the best constant learned from train: the commonest class, or the mean.

    None where the metric of a constant is undefined, and for generation, which has no such constant.
    """
    if prepared.kind == "generation":
        return dict.fromkeys(prepared.metrics)
    labels = [e.label for e in prepared.train if e.label is not None]
    if prepared.kind == "regression":
        constant: float = _sum(labels) / len(labels)
    else:
        counts = Counter(labels)
        constant = min(counts, key=lambda c: (-counts[c], c))
    references = [e.label for e in prepared.test]
    return {m: score(m, [constant] * len(references), references) for m in prepared.metrics}


def _known(name: str) -> tuple[Metric, Score]:
    if name not in METRICS:
        raise unknown("metric", name, METRICS)
    return METRICS[name]


def _plain(values: Sequence[Any]) -> Sequence[Any]:
    """NumPy arrays and tensors as lists of Python numbers."""
    return values.tolist() if hasattr(values, "tolist") else values


def _has_correlation(predictions: Sequence[float], references: Sequence[float]) -> bool:
    if min(len(set(predictions)), len(set(references))) < 2:
        return False
    return all(math.isfinite(v) for v in (*predictions, *references))


def _correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Pearson's correlation of finite values, neither side constant."""
    u, v = _deviations(x), _deviations(y)
    uv, uu, vv = (math.fsum(map(operator.mul, a, b)) for a, b in ((u, v), (u, u), (v, v)))
    return max(-1.0, min(1.0, uv / math.sqrt(uu * vv)))


def _deviations(values: Sequence[float]) -> list[float]:
    """Each value less the mean, over a power of two: no sum or square overflows or vanishes."""
    scaled = _scaled(values)
    mean = math.fsum(scaled) / len(scaled)
    return _scaled([v - mean for v in scaled])


def _scaled(values: Sequence[float]) -> list[float]:
    """The values over a power of two: the largest is between 0.5 and 1. Exact, but for those 2^1022 times smaller."""
    exponent = math.frexp(max(map(abs, values)))[1]
    return [math.ldexp(v, -exponent) for v in values]


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1; equal values share the mean of theirs."""
    ordered = sorted(values)
    return [(bisect_left(ordered, v) + bisect_right(ordered, v) + 1) / 2 for v in values]


def _sum(values: Iterable[float]) -> float:
    """The sum, rounded once; infinite where it overflows."""
    try:
        return math.fsum(values)
    except OverflowError:
        return math.inf


def _finite(value: float) -> float | None:
    """The value; None where it is infinite, or beyond what a record holds (`ranges.MOST`)."""
    return value if abs(value) <= ranges.MOST else None  # also for NaN
