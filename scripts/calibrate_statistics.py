"""How often the report's intervals and tests are wrong, and what they see, on synthetic runs with a known truth.

    python scripts/calibrate_statistics.py [--repeats 4000]

writes results/calibration/statistics.json and the tables in docs/statistics.md. Every number comes from the functions
that judge real records (`peftbench.report.stats.intervals`, `judge`, `examples`), on runs drawn from

    right(m, s, i)  =  mu_m + c_s + a_ms + b_i + g_mi + e_msi > 0        method m, seed s, test example i

all terms normal: c what a seed does to every method, a what it does to one, b an example's difficulty, g what of it is
a method's own, e the rest (sd 1). So the true accuracy is Phi(mu / sd of all terms), and a difference is what it is set
to. `lora` against itself is two methods with equal mu and no g. Each cell has its own random stream.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from peftbench.report.data import verdicts as judge
from peftbench.report.stats import influence as examples
from peftbench.report.stats import intervals, moderated, power
from peftbench.report.stats.intervals import Estimate, Scores

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "results" / "calibration" / "statistics.json"
PAGE = ROOT / "docs" / "statistics.md"
BEGIN, END = "<!-- calibration: made by scripts/calibrate_statistics.py -->", "<!-- calibration ends -->"
ACCURACY, DIFFICULTY = 0.75, 1.5  # of every method; sd of b
ALPHA, FAMILY, BOOTSTRAP = 0.05, 8, 499
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Truth:
    """How the runs of one cell are drawn; what seeds do is given in accuracy."""

    what: str
    own: float = 0.02  # sd over seeds of one method's accuracy, apart from the test examples
    common: float = 0.01  # the same for what a seed does to all methods
    taste: float = 0.0  # sd of g
    unlike: float = 0.0  # sd of the logarithm of `own` over methods
    reference: float = 1.0  # factor of `own` of the first method, which the others are compared with
    unstable: float = 1.0  # factor of `own` of the second method
    heavy: bool = False  # seeds from Student's t with 3 degrees of freedom instead of a normal
    collapse: float = 0.0  # share of seeds that fail to train: 20 points lower
    disjoint: bool = False  # no seed in common
    examples: int = 250


ALIKE = Truth("`lora` twice, seeds alike", own=0.0, common=0.0)
USUAL = Truth("`lora` twice, seeds 2 points apart")
AA = (
    ALIKE,
    USUAL,
    replace(USUAL, what="the same, no seed in common", disjoint=True),
    replace(USUAL, what="the same, 1,000 test examples", examples=1000),
    Truth("`lora` twice, seeds 5 points apart", own=0.05),
    replace(USUAL, what="`lora` twice, one seed in ten fails", collapse=0.1),
    Truth("two methods, equally good, on different examples", taste=1.0),
)
TABLES = (
    replace(USUAL, what="seeds 2 points apart"),
    replace(ALIKE, what="seeds alike"),
    replace(USUAL, what="good on different examples", taste=1.0),
    replace(USUAL, what="seeds of methods unlike (0.5)", unlike=0.5),
    replace(USUAL, what="seeds of methods unlike (1.0)", unlike=1.0),
    replace(USUAL, what="the same, 5 points", own=0.05, unlike=1.0),
    replace(USUAL, what="unlike (0.5), heavy tails", unlike=0.5, heavy=True),
    replace(USUAL, what="one seed in twenty fails", collapse=0.05),
    replace(USUAL, what="one seed in ten fails", collapse=0.1),
    replace(USUAL, what="the reference's seeds 3 times as far apart", reference=3.0),
    replace(USUAL, what="one method's seeds 5 times as far apart", unstable=5.0),
)
ROWS = (3, 8, 19)
TRIED = (*range(2, 13), 14, 16, 18, 20, 23, 26, 30, 34, 38, 42, 46, 50)  # numbers of seeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=4000)
    repeats = parser.parse_args().repeats
    found = {
        "about": {"repeats": repeats, "accuracy": ACCURACY, "difficulty": DIFFICULTY, "bootstrap": BOOTSTRAP},
        "alarms": [alarms(t, seeds, repeats) for t in AA for seeds in (1, 2, 3, 5)],
        "metrics": [metric_alarms(m, seeds, repeats // 8) for m in ("f1", "mcc", "pearson", "spearman", "rmse")
                    for seeds in (2, 3, 5)],
        "tables": [table_of_equals(t, rows, seeds, repeats // 4) for t in TABLES for rows in ROWS
                   for seeds in (2, 3, 5)],
        "pooled": [pooled(seeds, repeats) for seeds in (2, 3, 5)],
        "power": [seen(gap, seeds, n, repeats // 4) for gap in (0.02, 0.05, 0.1) for n in (250, 1000)
                  for seeds in (2, 3, 5, 10)],
        "of_table": [of_table(gap, n, rows, repeats // 40) for gap, n in ((0.02, 1000), (0.02, 4000), (0.05, 1000))
                     for rows in ROWS],
        "needed": [needed(gap, n, repeats // 4) for gap, n in ((0.05, 250), (0.03, 1000), (0.02, 4000))],
    }  # fmt: skip
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(found, indent=1) + "\n")
    PAGE.write_text(replaced(PAGE.read_text(), found))
    print(section(found))


def stream(*what: Any) -> np.random.RandomState:
    """The random stream of one cell: a hash of what it is."""
    return np.random.RandomState(int(hashlib.sha256(repr(what).encode()).hexdigest()[:8], 16))


def latent(t: Truth, gaps: Array, seeds: int, random: np.random.RandomState, exact: bool = False) -> list[Array]:
    """One (S, n) array a method of what decides whether it is right; `gaps` are added to the true accuracies.

    A method whose seeds are much further apart than `own` is a little less accurate, which a few seeds do not show,
    unless the accuracy is to be `exact`.
    """
    total = math.sqrt(1 + DIFFICULTY**2 + t.taste**2)
    slope = math.exp(-(ndtri(ACCURACY) ** 2) / 2) / math.sqrt(2 * math.pi) / total  # of accuracy in mu
    n, own, common = t.examples, t.own / slope, t.common / slope
    spread, total = math.hypot(total, common), math.sqrt(total**2 + own**2 + common**2)
    b, drawn = random.normal(0, DIFFICULTY, n), []
    c = random.normal(0, 1, seeds) * common
    for i, gap in enumerate(gaps):
        if t.disjoint:
            c = random.normal(0, 1, seeds) * common
        odd = {0: t.reference, 1: t.unstable}.get(i, 1.0)
        size = own * (math.exp(t.unlike * random.normal()) if t.unlike else odd)
        lot = random.standard_t(3, seeds) if t.heavy else random.normal(0, 1, seeds)
        luck = c + lot * size - (random.random_sample(seeds) < t.collapse) * 0.2 / slope
        mu = _mu(ACCURACY + gap, spread, size, t.heavy) if exact else float(ndtri(ACCURACY + gap)) * total
        z = mu + luck[:, None] + b + t.taste * random.normal(0, 1, n)
        drawn.append(z + random.normal(0, 1, (seeds, n)))
    return drawn


T3 = stdtrit(3, (np.arange(200) + 0.5) / 200)  # a grid of Student's t with 3 degrees of freedom


def _mu(accuracy: float, spread: float, own: float, heavy: bool) -> float:
    """The mu of this true accuracy, by the sds of all else and of what the method's own seeds do."""
    if not heavy:
        return float(ndtri(accuracy)) * math.hypot(spread, own)
    low, high = -20 * spread, 20 * spread
    for _ in range(40):
        mu = (low + high) / 2
        low, high = (mu, high) if ndtr((mu + own * T3) / spread).mean() < accuracy else (low, mu)
    return mu


def runs(t: Truth, gaps: Array, seeds: int, random: np.random.RandomState, exact: bool = False) -> list[Scores]:
    """The scores of methods whose true accuracies are ACCURACY + gaps, and what each example does to them."""
    found = []
    for i, z in enumerate(latent(t, gaps, seeds, random, exact)):
        right = (z > 0).astype(float)
        at = tuple(range(i * seeds, (i + 1) * seeds) if t.disjoint else range(seeds))
        values = right.mean(1)
        found.append(Scores(at, values, right - values[:, None], examples.grain("accuracy", t.examples)))
    return found


def alarms(t: Truth, seeds: int, repeats: int) -> dict[str, Any]:
    """How often a difference that is not there is called sure, by the report's interval and by others."""
    random = stream("alarms", asdict(t), seeds, repeats)
    weights = random.multinomial(t.examples, np.full(t.examples, 1 / t.examples), BOOTSTRAP) / t.examples
    picks = random.randint(0, seeds, (2, BOOTSTRAP, seeds))
    wrong, resampled, covered = np.zeros(3), 0, 0
    for i in range(repeats):
        a, b = runs(t, np.zeros(2), seeds, random)
        d = intervals.difference(a, b)
        wrong += [abs(d.value) > (d.half() or 0.0), *_others(d)]
        if i < repeats // 4:  # the slow one
            resampled += _percentile(a, b, weights, picks, t.disjoint)
        low, high = intervals.mean(a).interval() or (0.0, 0.0)
        covered += low <= ACCURACY <= high
    names = ("report", "matched_df", "examples_only")
    return {
        **asdict(t),
        "seeds": seeds,
        "repeats": repeats,
        **{name: rate(int(k), repeats) for name, k in zip(names, wrong, strict=True)},
        "bootstrap": rate(resampled, repeats // 4),
        "covers": rate(covered, repeats) if not t.collapse else None,
    }


def _others(d: Estimate) -> tuple[bool, bool]:
    """Degrees of freedom matched to the estimates (Hillis 2007; of two samples, Welch's); the examples alone."""
    v1 = sum(v for v, _ in d.parts)
    below = sum(v**2 / df for v, df in d.parts)
    df = min((v1 + d.shared) ** 2 / below, d.examples - 1) if below > 0 else d.examples - 1
    matched = abs(d.value) > -stdtrit(df, ALPHA / 2) * math.sqrt(v1 + d.shared) if d.parts else False
    return matched, abs(d.value) > -ndtri(ALPHA / 2) * math.sqrt(max(0.0, d.floor - (1 / d.examples) ** 2))


def _percentile(a: Scores, b: Scores, weights: Array, picks: NDArray[np.int_], disjoint: bool) -> bool:
    """The percentile interval of a bootstrap over seeds and examples: the same ones on both sides where they pair."""
    assert a.influences is not None
    assert b.influences is not None
    means = [weights @ (s.influences + s.values[:, None]).T for s in (a, b) if s.influences is not None]  # (B, S)
    first, second = (np.take_along_axis(m, picks[i if disjoint else 0], 1).mean(1) for i, m in enumerate(means))
    low, high = np.quantile(first - second, [ALPHA / 2, 1 - ALPHA / 2])
    return not low <= 0 <= high


def metric_alarms(metric: str, seeds: int, repeats: int) -> dict[str, Any]:
    """The same for other metrics: predictions of two equal methods, scored and judged as records are."""
    random = stream("metrics", metric, seeds, repeats)
    wrong = 0
    for _ in range(repeats):
        a, b = (_scored(metric, z, random) for z in latent(USUAL, np.zeros(2), seeds, random))
        d = intervals.difference(a, b)
        wrong += abs(d.value) > (d.half() or 0.0)
    return {"metric": metric, "seeds": seeds, "repeats": repeats, "report": rate(wrong, repeats)}


LABELS: Mapping[bool, Array] = {
    True: (np.arange(USUAL.examples) % 10 < 3).astype(float),  # classes: three in ten are positive
    False: np.linspace(-2, 2, USUAL.examples),  # numbers
}


def _scored(metric: str, z: Array, random: np.random.RandomState) -> Scores:
    labels = LABELS[metric in examples.COUNTED]
    wrong_side = 1 - labels if metric in examples.COUNTED else labels + 1.5
    values = np.where(z > 0, labels, wrong_side)
    if metric not in examples.COUNTED:
        values = values + random.normal(0, 0.3, z.shape)
    found = [examples.SCORES[metric](v, labels) for v in values]
    moved = [examples.influences(metric, v.tolist(), labels.tolist(), float(f[0]))
             for v, f in zip(values, found, strict=True)]  # fmt: skip
    assert all(m is not None for m in moved)
    grain = examples.grain(metric, len(labels))
    return Scores(tuple(range(len(z))), np.array([f[0] for f in found]), np.array(moved), grain)


def table_of_equals(t: Truth, methods: int, seeds: int, repeats: int) -> dict[str, Any]:
    """A table of equal methods: differences to the reference called sure, one by one and any of them after Holm's
    correction; the first method not among the best; and how much moderation narrows the corrected intervals."""
    random = stream("table", asdict(t), methods, seeds, repeats)
    alarms = any_alarm = any_own = lost = 0
    narrow, wide = 0.0, 0.0
    level = 1 - ALPHA / (methods - 1)
    for _ in range(repeats):
        scores = {str(i): s for i, s in enumerate(runs(t, np.zeros(methods), seeds, random))}
        verdicts = judge.verdicts(scores, "0", "max")
        found = [v.difference for v in verdicts.values() if v.difference]
        alarms += sum(abs(d.value) > (d.half() or 0.0) for d in found)
        any_alarm += any(v.p_holm is not None and v.p_holm < ALPHA for v in verdicts.values())
        lost += not verdicts["0"].tied
        narrow += sum(d.half(level) or 0.0 for d in found)
        own = [intervals.difference(scores[n], scores["0"]) for n in scores if n != "0"]
        any_own += any(abs(d.value) > (d.half(level) or 0.0) for d in own)  # the least p-value is Holm's first
        wide += sum(d.half(level) or 0.0 for d in own)
    told = {**asdict(t), "seeds": seeds, "methods": methods, "repeats": repeats}
    return {
        **told,
        "alarm": rate(alarms / (methods - 1), repeats),  # rows of one table share its reference: one draw each
        "any_alarm": rate(any_alarm, repeats),
        "any_own": rate(any_own, repeats),
        "best_not_marked": rate(lost, repeats),
        "width": round(narrow / wide, 3),
    }


def pooled(seeds: int, repeats: int) -> dict[str, Any]:
    """A table of equal methods whose seeds differ by e^(0.8 z), z normal: own variances against one for the table."""
    random = stream("pooled", seeds, repeats)
    unlike = np.exp(0.8 * random.normal(0, 1, (repeats, FAMILY - 1, 1)))
    d = unlike * random.normal(0, 1, (repeats, FAMILY - 1, seeds))
    own = d.var(2, ddof=1) / seeds
    ways = {"own": (own, seeds - 1), "one": (own.mean(1, keepdims=True), (seeds - 1) * (FAMILY - 1))}
    p = {name: 2 * stdtr(df, -np.abs(d.mean(2)) / np.sqrt(v)).min(1) for name, (v, df) in ways.items()}
    alarms = {name: rate(int((least * (FAMILY - 1) < ALPHA).sum()), repeats) for name, least in p.items()}
    return {"seeds": seeds, "methods": FAMILY, "repeats": repeats, **alarms}


def seen(gap: float, seeds: int, n: int, repeats: int) -> dict[str, Any]:
    """How often a true difference of `gap` is called sure, with the right sign; methods differ on half the examples."""
    t = replace(USUAL, what="power", taste=0.5, examples=n)
    random = stream("power", asdict(t), gap, seeds, repeats)
    right = 0
    for _ in range(repeats):
        d = intervals.difference(*runs(t, np.array([gap, 0.0]), seeds, random))
        right += d.value > (d.half() or 0.0)
    return {"gap": gap, "seeds": seeds, "examples": n, "repeats": repeats, "power": rate(right, repeats)}


def needed(gap: float, n: int, repeats: int) -> dict[str, Any]:
    """The seeds that the report would ask for, from 7 pairs of 3 seeds each, and the power at that number."""
    t = replace(USUAL, what="power", taste=0.5, examples=n)
    random = stream("needed", asdict(t), gap, repeats)
    asked = []
    for _ in range(100):
        first, *others = runs(t, np.zeros(FAMILY), 3, random)
        asked.append(
            power.VarianceComponents.of([intervals.difference(s, first) for s in others]).seeds_for(gap) or power.MOST
        )
    seeds = int(np.median(asked))
    return {"gap": gap, "examples": n, "asked": seeds, "at_that": seen(gap, seeds, n, repeats)["power"]}


def of_table(gap: float, n: int, methods: int, repeats: int) -> dict[str, Any]:
    """Seeds with which four tables of five see one row that is `gap` behind the reference, after Holm's correction over
    equally good others: by each row's own variance, and by moderated ones. None if `TRIED` seeds do not do."""
    t = replace(USUAL, what="power", examples=n)
    random = stream("of table", asdict(t), gap, methods, repeats)
    ways: Mapping[str, Callable[[list[Estimate]], list[Estimate]]] = {"own": list, "moderated": moderated.moderate}
    seen = {name: np.zeros(TRIED[-1] + 1) for name in ways}
    for _ in range(repeats):
        first, *others = runs(t, np.array([0.0, -gap, *[0.0] * (methods - 2)]), TRIED[-1], random)
        for seeds in TRIED:
            some = range(seeds)
            found = [intervals.difference(s.at(some), first.at(some)) for s in others]
            for name, way in ways.items():
                seen[name][seeds] += 0 in _sure(way(found))
    needed = {name: next((s for s in TRIED if k[s] >= power.POWER * repeats), None) for name, k in seen.items()}
    return {"gap": gap, "examples": n, "methods": methods, "repeats": repeats, **needed}


def _sure(found: Sequence[Estimate]) -> set[int]:
    """The differences that are sure after Holm's correction."""
    sure: set[int] = set()
    while True:
        level = 1 - ALPHA / max(1, len(found) - len(sure))
        more = {i for i, d in enumerate(found) if i not in sure and abs(d.value) > (d.half(level) or 0.0)}
        if not more:
            return sure
        sure |= more


def rate(k: float, n: int) -> list[float]:
    """[share, and the ends of its Wilson interval]"""
    return [round(float(v), 5) for v in (k / n, *intervals.wilson(k / n, n))]


def replaced(text: str, found: Mapping[str, Any]) -> str:
    """The page's text with its tables as `found` has them."""
    before, _, rest = text.partition(BEGIN)
    return before + section(found) + rest.partition(END)[2]


def section(found: Mapping[str, Any]) -> str:
    """What stands between the two markers."""
    return "\n".join([BEGIN, *_section(found), END])


def _section(found: Mapping[str, Any]) -> Iterator[str]:
    from tabulate import tabulate

    def table(rows: list[list[str]], heads: list[str]) -> str:
        align = ["left", *["right"] * (len(heads) - 1)]
        return "\n" + tabulate(rows, heads, "pipe", disable_numparse=True, colalign=align) + "\n"

    repeats = found["about"]["repeats"]
    draws = f"{repeats:,} draws each, {repeats // 4:,} for the bootstrap"
    yield f"False alarms in percent [95 % Wilson interval]; {draws}; nominal: 5."
    heads = ["truth", "seeds", "report", "df matched", "bootstrap", "examples only", "mean covered"]
    kinds = ("report", "matched_df", "bootstrap", "examples_only", "covers")
    unknown = {"matched_df"}  # with one seed
    yield table(
        [
            [r["what"], str(r["seeds"]), *(_percent(None if r["seeds"] == 1 and k in unknown else r[k]) for k in kinds)]
            for r in found["alarms"]
        ],
        heads,
    )
    yield f"The same for other metrics (`lora` twice, seeds 2 points apart; {repeats // 8:,} draws each):"
    by_metric = dict.fromkeys(r["metric"] for r in found["metrics"])
    counts = sorted({r["seeds"] for r in found["metrics"]})
    at = {(r["metric"], r["seeds"]): _percent(r["report"]) for r in found["metrics"]}
    yield table([[m, *(at[m, s] for s in counts)] for m in by_metric], ["metric", *(f"{s} seeds" for s in counts)])
    yield (
        f"Tables of equally good methods ({found['tables'][0]['repeats']:,} draws each): any difference to the "
        "reference called sure (Holm), by moderated variances and, after the slash, by each row's own; in brackets one "
        "of them by itself, the first one not marked as tied with the best, and the width of the corrected intervals "
        "as a share of what each row's own variance gives:"
    )
    at = {(r["what"], r["methods"], r["seeds"]): r for r in found["tables"]}
    heads = [f"{k} rows, {s} seeds" for k in ROWS for s in (2, 3, 5)]
    whats = dict.fromkeys(r["what"] for r in found["tables"])
    yield table([[w, *(_of_table(at[w, k, s]) for k in ROWS for s in (2, 3, 5))] for w in whats], ["truth", *heads])
    yield f"The same where methods' seeds differ unequally, by own variances and by one for all ({repeats:,} draws):"
    rows = [[f"{r['seeds']} seeds", _percent(r["own"]), _percent(r["one"])] for r in found["pooled"]]
    yield table(rows, ["seeds", "own variances (the report's way)", "one variance"])
    yield "Power: how often a true difference is seen, in percent (seeds 2 points apart, one pair at 95 %):"
    counts = sorted({r["seeds"] for r in found["power"]})
    at = {(r["gap"], r["examples"], r["seeds"]): _percent(r["power"]) for r in found["power"]}
    gaps = dict.fromkeys((r["gap"], r["examples"]) for r in found["power"])
    yield table(
        [[f"{g * 100:g} points, {n:,} test examples", *(at[g, n, s] for s in counts)] for g, n in gaps],
        ["difference", *(f"{s} seeds" for s in counts)],
    )
    yield (
        "Seeds with which four tables of five see one row that is behind the reference, after Holm's correction, by "
        "each row's own variance → by moderated variances (seeds 2 points apart, "
        f"{found['of_table'][0]['repeats']} tables):"
    )
    at = {(r["gap"], r["examples"], r["methods"]): " → ".join(_of(r[k]) for k in ("own", "moderated"))
          for r in found["of_table"]}  # fmt: skip
    gaps = dict.fromkeys((r["gap"], r["examples"]) for r in found["of_table"])
    yield table(
        [[f"{g * 100:g} points, {n:,} test examples", *(at[g, n, k] for k in ROWS)] for g, n in gaps],
        ["difference", *(f"{k} rows" for k in ROWS)],
    )
    yield "Seeds that the report asks for to see a difference in four cases of five (from tables of 3), and the result:"
    yield table(
        [[f"{r['gap'] * 100:g} points, {r['examples']:,} test examples", str(r["asked"]), _percent(r["at_that"])]
         for r in found["needed"]], ["difference", "seeds asked for (median)", "seen with them"])  # fmt: skip


def _of_table(r: Mapping[str, Any]) -> str:
    one, lost = (100 * r[key][0] for key in ("alarm", "best_not_marked"))
    return f"{100 * r['any_alarm'][0]:.1f} / {100 * r['any_own'][0]:.1f} ({one:.1f}, {lost:.1f}, {r['width']:.2f})"


def _of(seeds: int | None) -> str:
    return f"> {TRIED[-1]}" if seeds is None else str(seeds)


def _percent(found: list[float] | None) -> str:
    if found is None:
        return "—"
    share, low, high = (v * 100 for v in found)
    return f"{share:.1f} [{low:.1f}, {high:.1f}]"


if __name__ == "__main__":
    main()
