"""Which files of a model's directory are loaded, and which directories are refused before anything of theirs is.

A directory may come from a stranger. Its files are data: no pickle of it is read, none of its code runs, and its JSON
files name no file elsewhere. Imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftbench.backbones import tokenizer_files
from peftbench.backbones.json_files import is_regular, read_json
from peftbench.errors import UserError

INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npy", ".npz")
LOADED = (  # what from_pretrained may open: weights, configurations, vocabularies, chat templates
    *("*.safetensors", "*.bin", "*.json", "*.txt", "*.model"),
    *("*.jinja", "additional_chat_templates/*.jinja"),
    *("*.spm", "*.codes", "*.tokenizer", "*.tiktoken", "*.bpe", "*.vocab", "*.model.*"),
)
# keys by which a JSON file sends the library to another file
_CONFIG, _TOKENIZER = ("configuration_files", "transformers_weights"), ("fast_tokenizer_files",)
_POINTERS = {"config.json": _CONFIG, "tokenizer_config.json": _TOKENIZER, "generation_config.json": _CONFIG}


def loaded_files(folder: Path) -> list[Path]:
    """Return the files of a model's directory that loading it may open, those that its index names included.

    Args:
        folder: the directory; one without a `refusal`.
    """
    named = {folder / name for name in _index(folder).values()}
    found = {f for pattern in LOADED for f in folder.glob(pattern)} | {f for f in named if f.exists()}
    return sorted(found)


def check(folder: Path) -> None:
    """Check that loading a model's directory reads nothing but data, and nothing outside it.

    Args:
        folder: the directory.

    Raises:
        UserError: an index names a pickle or a file elsewhere; a JSON file does; an adapter lies beside the weights; or
            a file is none.
    """
    for name in {str(n): n for n in _index(folder).values()}.values():
        if why := _refused(folder, name):
            raise UserError(
                f"{folder / INDEX} names {_short(name)}, {why}. An index names *.safetensors files of its own "
                "directory: save the model there again with save_pretrained, which writes such files"
            )
    for file, keys in _POINTERS.items():
        for key in keys:
            if key in (facts := read_json(folder / file)):
                raise UserError(
                    f"{folder / file} sends the reader to other files ({key}: {_short(facts[key])}), and only the "
                    f"usual ones are read; remove {key}, or save the model there again with save_pretrained"
                )
    if pointer := tokenizer_files.pointer(folder):
        file, key, value = pointer
        raise UserError(
            f"{folder / file} sends the reader to other files ({key}: {_short(value)}), and a tokenizer is read from "
            f"the usual files of its directory; remove {key}, or save the tokenizer there again with save_pretrained"
        )
    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"{folder} holds an adapter of peft beside the model (adapter_config.json), and a backbone is a plain "
            "network; merge the adapter and save the network, or give a directory without it"
        )
    for path in loaded_files(folder):
        if not is_regular(path):
            raise UserError(f"{path} is not a regular file that can be read; save the model there again, or remove it")


def pickled(folder: Path) -> str | None:
    """Return the name of a file that holds weights as a pickle, which is never read; None if there is none."""
    return next(
        (p.name for p in sorted(folder.iterdir()) if p.suffix in PICKLES and p.name != "training_args.bin"), None
    )


def own_code(path: Path | str | None) -> str | None:
    """Return the code of its own that a JSON file of a model asks for, as it names it; None if it asks for none.

    Args:
        path: a `config.json` or `tokenizer_config.json`.
    """
    asked = None if path is None else read_json(Path(path)).get("auto_map")
    if not asked:
        return None
    classes = asked.values() if isinstance(asked, dict) else asked
    texts = [c for c in classes if isinstance(c, str)] if isinstance(classes, list | tuple | type({}.values())) else []
    return _short(texts[0] if texts else asked)


def _index(folder: Path) -> dict[str, Any]:
    """Return the name of the file of each tensor, by the tensor's, as the directory's index says."""
    names = read_json(folder / INDEX).get("weight_map")
    return names if isinstance(names, dict) else {}


def _refused(folder: Path, name: Any) -> str | None:
    """Return why an index must not name a file; None if it may."""
    if not isinstance(name, str):
        return "which is no file name"
    if Path(name).suffix != ".safetensors":
        return "which is a pickle or no weights" if Path(name).suffix in PICKLES else "which is not *.safetensors"
    if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        return "which is outside its directory"
    if not any(_target(folder / name).is_relative_to(root) for root in _roots(folder)):
        return "which is a link to a file outside its directory"
    return None


def _roots(folder: Path) -> Iterator[Path]:
    """Yield the directories that a model's files may lie in: its own, and the hub cache's that its links lead to."""
    own = folder.resolve()
    yield own
    if own.parent.name == "snapshots":
        yield own.parent.parent / "blobs"


def _target(path: Path) -> Path:
    """Return where a path leads to; itself for a circle of links, which no file is."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return path


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
