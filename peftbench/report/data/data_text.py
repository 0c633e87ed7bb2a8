"""What was done to a task's data, in sentences: facts, and what a user should mend before trusting a score.

`plan` and `run` print them before training; reports repeat them from the records.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from peftbench.records import lookalike
from peftbench.records.data_summary import DataSummary, SplitSummary
from peftbench.report.media import plain

LARGE = 0.1  # share of a split's texts; if more are cut, that is a warning
CAUSE = 0.25  # share from which it is named where a task is not learned
FEW = 5  # examples of train; a class with fewer is named
SHOWN = 12  # classes in a sentence
NAME_WIDTH = 30  # characters of a class's name
MISSING = (  # how people and programs write a missing value, without the signs around it
    "na",
    "n/a",
    "n.a",
    "nan",
    "nat",
    "nil",
    "none",
    "null",
    "undefined",
    "unknown",
    "missing",
    "not available",
)
SIGNS = " -.#!<>()[]{}_\\"  # around such a value: #N/A, <NA>, (null), n.a.
NOTHING = ("", "-", "--", "---", "?", "\\n", "#ref!", "#value!", "#div/0!", "#name?", "#num!", "#null!")
TRUTH = ("true", "false")


def facts(data: DataSummary, max_length: int) -> Iterator[str]:
    """Yield sentences on examples, classes and lengths.

    Args:
        data: the summary.
        max_length: tokens at which texts are cut.
    """
    splits = _splits(data)
    yield f"Examples: {', '.join(f'{s.rows:,} {name}' for name, s in splits.items())}."
    if data.notes:
        yield f"Prepared: {'; '.join(data.notes)}."
    if data.classes:
        order = sorted(range(len(data.classes)), key=lambda i: (-splits["train"].per_class[i], i))
        yield f"Classes, {'/'.join(splits)}: {_some(_counted(data, order))}."
    if any(s.copies for s in splits.values()):
        yield f"Copies: {_each(data, lambda s: s.copies)} repeat an earlier one of their split, and stay there."
    longest = max(s.longest for s in splits.values())
    yield f"Texts: at most {longest:,} tokens, and max_length is {max_length:,}; {_cut(splits.values())}."


def warnings(data: DataSummary, max_length: int) -> Iterator[str]:
    """Yield what a user should mend or know: texts that are cut, tokens that stand twice, likely mistakes in labels.

    The arguments are those of `facts`.
    """
    splits = _splits(data).values()
    if share_cut(data) > LARGE:
        lost = sum(s.cut_tokens for s in splits) / sum(s.tokens for s in splits)
        yield (
            f"Texts over {max_length:,} tokens lose their {data.cut_from}: {_shares(data, lambda s: s.cut_texts)}, "
            f"with {_percent(lost)} of all tokens. Raise max_length, or shorten the texts."
        )
    if any(s.cut_answers > LARGE * s.rows for s in splits):
        yield (
            f"Answers lose their end: {_shares(data, lambda s: s.cut_answers)}. From a cut answer, the network does "
            "not learn where to end."
        )
    for token, n in data.doubled.items():
        yield (
            f"{n:,} texts begin or end with {token} twice: their template adds it, and so does the tokenizer. Remove "
            "it from the template."
        )
    yield from _likely_mistakes(data)


def share_cut(data: DataSummary) -> float:
    """Return the share of texts that lost tokens, in the split where it is largest."""
    return max(s.cut_texts / s.rows for s in data.splits.values())


def likely_cause(data: DataSummary | None) -> str | None:
    """Return why a task may not be learned: the share of its texts that are cut, if it is large."""
    if data is None or share_cut(data) < CAUSE:
        return None
    return f"{_percent(share_cut(data))} of the texts are cut"


def names(classes: Sequence[str], longest: int | None = NAME_WIDTH) -> dict[str, str]:
    """Return each class's name as it is shown: told apart from the others, and quoted where blanks would not show.

    Args:
        classes: all classes of a task; which characters can be left out depends on the others.
        longest: width in characters to which names are cut; None leaves them whole.
    """
    times = Counter(map(_without_marks, classes))
    shown = {name: _quoted(name, marks=times[_without_marks(name)] > 1) for name in classes}
    if longest is None:
        return shown
    short = plain.shortened(shown.values(), longest)
    return {name: short[text] for name, text in shown.items()}


def _quoted(name: str, marks: bool) -> str:
    """Return a name with escapes for control characters and unusual blanks; if wanted, for format characters, too."""
    hidden = (c != " " and (c.isspace() or (marks and unicodedata.category(c) == "Cf")) for c in name)
    shown = "".join(_escape(c) if hides else plain.visible(c) for c, hides in zip(name, hidden, strict=True))
    if shown == name and name == " ".join(name.split()) and name:
        return name
    quote = '"' if "'" in name else "'"
    return f"{quote}{shown}{quote}"


def _escape(c: str) -> str:
    return c.encode("unicode_escape").decode()


def _without_marks(name: str) -> str:
    """Return a name without format characters, such as joiners: two names that are equal without them look alike."""
    return "".join(c for c in name if unicodedata.category(c) != "Cf")


def _splits(data: DataSummary) -> dict[str, SplitSummary]:
    """Return the splits in their usual order; a record's file sorts them by name."""
    return {name: data.splits[name] for name in ("train", "validation", "test") if name in data.splits}


def _counted(data: DataSummary, order: Sequence[int]) -> list[str]:
    """Return classes with their examples by split: `billing 202/21/24`."""
    shown, splits = names(data.classes), _splits(data).values()
    return [f"{shown[data.classes[i]]} {'/'.join(f'{s.per_class[i]:,}' for s in splits)}" for i in order]


def _cut(splits: Collection[SplitSummary]) -> str:
    """Return how many texts are cut; of a task whose answers are, how many prompts and how many answers."""
    rows, texts, answers = (sum(getattr(s, f) for s in splits) for f in ("rows", "cut_texts", "cut_answers"))
    if not answers:
        return f"{_percent(texts / rows)} are cut" if texts else "none is cut"
    prompts = f"{_percent(texts / rows)} of the prompts are cut" if texts else "no prompt is cut"
    return f"{prompts}; {_percent(answers / rows)} of the answers are"


def _shares(data: DataSummary, count: Callable[[SplitSummary], int]) -> str:
    shares = {name: _percent(count(s) / s.rows) for name, s in _splits(data).items()}
    if len(set(shares.values())) == 1:
        return f"{shares['train']} of every split"
    return ", ".join(f"{share} of {name}" for name, share in shares.items())


def _each(data: DataSummary, count: Callable[[SplitSummary], int]) -> str:
    return ", ".join(f"{count(s):,} examples of {name}" for name, s in _splits(data).items() if count(s))


def _percent(share: float) -> str:
    """Return a share in percent; neither all nor nothing by rounding."""
    whole = round(100 * share)
    return f"{'> 99' if whole == 100 and share < 1 else '< 1' if whole == 0 and share > 0 else whole} %"


def _some(texts: Sequence[str]) -> str:
    more = len(texts) - SHOWN
    return ", ".join(texts[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def _likely_mistakes(data: DataSummary) -> Iterator[str]:
    shown = names(data.classes)
    words = [n for n in data.classes if _number(n) is None]
    numbers = [n for n in data.classes if _number(n) is not None]
    if alike := _alike(words, _spelling, shown):
        yield f"Classes that differ only in case, blanks or hyphens: {alike}. Each counts as a class of its own."
    if alike := _alike(numbers, lambda n: str(_number(n)), shown):
        yield f"Classes that are one number, written in several ways: {alike}. Each counts as a class of its own."
    truth = [n for n in words if n.lower() in TRUTH]
    missing = [n for n in words if _looks_missing(n)]
    others = [n for n in words if n not in truth and n not in missing]
    kinds = {"numbers": numbers, "truth values": truth, "words": others}
    mixed = [f"{kind} ({_some([shown[n] for n in of])})" for kind, of in kinds.items() if of]
    if numbers and len(mixed) > 1:
        yield f"Labels of mixed type: {' and '.join(mixed)}."
    if missing:
        yield f"Classes that look like missing values: {_some([shown[n] for n in missing])}. Leave these rows out."
    few = [i for i in range(len(data.classes)) if _is_rare(data, i)]
    if few:
        counted = _some(_counted(data, few))
        yield f"Classes with fewer than {FEW} examples of train, or without one of another split: {counted}."
    if any(s.contradictory for s in data.splits.values()):
        yield f"Texts that stand in several classes: {_each(data, lambda s: s.contradictory)}."


def _looks_missing(name: str) -> bool:
    return name.strip().lower() in NOTHING or name.strip(SIGNS).lower() in MISSING


def _is_rare(data: DataSummary, i: int) -> bool:
    train, *others = _splits(data).values()
    return train.per_class[i] < FEW or not all(s.per_class[i] for s in others)


def _alike(classes: Sequence[str], key: Callable[[str], str], shown: Mapping[str, str]) -> str:
    """Return the names of classes that have a key in common, group by group; empty if each has its own."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        groups[key(name)].append(name)
    groups_alike = [of for of in groups.values() if len(of) > 1]
    return _some([" = ".join(lookalike.told_apart(of, lambda name: shown[name])) for of in groups_alike])


def _spelling(name: str) -> str:
    """Return a name without what people do not mean to differ: case, blanks, hyphens, forms of one character."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    return "".join(c for c in folded if not c.isspace() and c not in "-_") or folded


def _number(name: str) -> float | None:
    try:
        value = float(name)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
