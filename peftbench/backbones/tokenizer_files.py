"""What the JSON files of a tokenizer ask of transformers, judged before it reads them. Imports no transformers.

Transformers passes each key of `tokenizer_config.json` and `special_tokens_map.json` to the tokenizer's class, and some
classes take a text as the path of a file to read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import log
from pathlib import Path
from typing import Any

from peftbench.backbones.json_files import read_json

CONFIG, SPECIAL, TOKENIZER = "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json"
MOST_GROWTH = 1000  # the replacements of honest normalisers are as long as what they replace, or three times
# old saves left these paths behind; transformers puts its own in their place, or reads none
LEFT_OVER = ("name_or_path", "_name_or_path", "tokenizer_file", "special_tokens_map_file", "cache_dir")
REPLACED = ("vocab_file", "merges_file")  # left over, too; not every class has them replaced
_PATHS = re.compile(r"(.*_)?(file|files|path|paths|dir|vocab|merges|spm|model_proto|mecab_option|tokenizer_object)")
_TOKENS = re.compile(r".*_tokens?")


def pointer(folder: Path) -> tuple[str, str, Any] | None:
    """Return by which file, key and value a tokenizer's JSON files send the reader to a file; None if none does.

    Args:
        folder: the model's directory.
    """
    facts = read_json(folder / CONFIG)
    if facts.get("init_inputs"):  # arguments without names, of which the first is often a vocabulary
        return CONFIG, "init_inputs", facts["init_inputs"]
    for key, value in facts.items():
        if key not in (*LEFT_OVER, *REPLACED) and (found := _path_in(key, value)):
            return CONFIG, *found
    for key, value in read_json(folder / SPECIAL).items():  # transformers takes these after its own paths
        if value is not None and not _TOKENS.fullmatch(key):
            return SPECIAL, key, value
    return None


def overrides(folder: Path) -> dict[str, None]:
    """Return the arguments of `from_pretrained` that keep paths left over from old saves from being read."""
    facts = read_json(folder / CONFIG)
    return {key: None for key in REPLACED if facts.get(key) is not None}


def multiplies(folder: Path) -> bool:
    """Whether the replacements of `tokenizer.json`, one after another, may make a text MOST_GROWTH times as long."""
    facts = read_json(folder / TOKENIZER)
    parts = ("normalizer", "pre_tokenizer", "decoder")
    return any(sum(log(max(1, times)) for times in _times(facts.get(part))) > log(MOST_GROWTH) for part in parts)


def classes(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield the files that name the tokenizer's class, and what they name."""
    for file in (CONFIG, "config.json"):
        if (named := read_json(folder / file).get("tokenizer_class")) is not None:
            yield file, named


def _path_in(key: str, value: Any) -> tuple[str, str] | None:
    """Return the key and the text by which a value, or one nested in it, names a file; None if none does."""
    waiting = [(key, value)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, str) and _PATHS.fullmatch(key):
            return key, value
        if _TOKENS.fullmatch(key) or key.endswith(("vocab", "merges", "added_tokens_decoder")):
            continue  # tokens, or a vocabulary itself, whose keys are words
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += [(key, v) for v in value]
    return None


def _times(step: Any) -> Iterator[float]:
    """Yield how many times as long a step, or one in its sequence, can make a text."""
    waiting = [step]
    while waiting:
        match waiting.pop():
            case {"prepend": str(text)}:
                yield 1 + len(text)
            case {"content": str(text), "pattern": {"String": str(replaced)}}:
                yield len(text) / max(1, len(replaced))
            case {"content": str(text)}:  # a regular expression may match one character, and the places between
                yield len(text)
            case dict() as facts:
                waiting += [v for v in facts.values() if isinstance(v, dict | list)]
            case list() as steps:
                waiting += steps
