"""The one door to transformers' loaders: what they load is data, and no code of a model's directory runs.

Nothing else calls `from_pretrained` or `from_config` (tests/backbones/test_strangers.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peftbench.backbones import model_folder, source
from peftbench.errors import UserError


def from_pretrained(loader: Any, place: str | Path, **options: Any) -> Any:
    """Return what `loader.from_pretrained` makes; where only code of the directory could make it, it raises.

    Args:
        loader: a class of transformers, such as `AutoTokenizer`.
        place: directory.
        options: further arguments.
    """
    return loader.from_pretrained(place, trust_remote_code=False, **options)


def from_config(loader: Any, config: Any, **options: Any) -> Any:
    """Return the network that `loader.from_config` makes of a configuration.

    Args:
        loader: a class of transformers, such as `AutoModelForCausalLM`.
        config: the configuration.
        options: further arguments.
    """
    return loader.from_config(config, trust_remote_code=False, **options)


def load_error(origin: source.Origin, part: str, file: str, error: Exception) -> UserError:
    """Return the error to raise if `part` of a model does not load.

    Args:
        origin: where the model comes from.
        part: what was loaded: "config.json", "tokenizer".
        file: the JSON file that says by which class it is loaded.
        error: what the loader raised.

    Returns:
        An error that names the code that the model asks for, if it asks for any.
    """
    if code := model_folder.own_code(Path(origin.place) / file):
        return UserError(
            f"backbone {origin.model!r} asks for code of its own: {file} names {code} in auto_map. Code of a model's "
            "directory never runs, and transformers itself does not load it; give a model of an architecture and a "
            "tokenizer that transformers knows"
        )
    return origin.load_error(part, error)
