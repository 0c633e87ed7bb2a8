"""The files of a base model on the hub, at one commit, in the hub's cache."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path

from peftbench.backbones.hub import HubError, NoSuchRevision, Repository
from peftbench.backbones.model_folder import INDEX, LOADED, PICKLES

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_SMALL = [pattern for pattern in LOADED if pattern not in ("*.safetensors", "*.bin")]  # what is not weights
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Snapshot:
    """A model at one commit.

    Attributes:
        commit: The commit's hash.
        directory: The directory in the hub's cache with the files that were downloaded.
        listed: Names of all files at this commit; None if the hub was not asked.
    """

    commit: str
    directory: Path
    listed: tuple[str, ...] | None


@lru_cache
def snapshot(model: str, revision: str | None = None) -> Snapshot:
    """Return a model at the commit of a revision, with all files except the weights downloaded.

    One process asks the hub once for each revision. A commit that the cache has is not asked for. If the hub fails, the
    commit that the cache knows for the revision is used, and the user is told.

    Args:
        model: Hub id.
        revision: Commit, branch or tag; None for the main branch.

    Raises:
        HubError: The hub refuses the model or does not deliver it, and the cache does not have it.
    """
    repository = Repository(model)
    known = repository.cached(CONFIG, revision)
    if known is not None and _COMMIT.fullmatch(revision or ""):
        return Snapshot(known.parent.name, known.parent, None)
    try:
        listing = repository.listing(revision)
    except NoSuchRevision:
        raise
    except HubError as error:
        if known is None:
            raise
        repository.note_use_of_cache(error, known.parent.name)
        return Snapshot(known.parent.name, known.parent, None)
    if CONFIG not in listing.files:
        raise HubError(
            f"it has no {CONFIG}, so that it is no model that transformers saved; its files: {_few(listing.files)}",
            "Name a repository that save_pretrained wrote",
        )
    for name in sorted(listing.files, key=lambda name: name == CONFIG):  # last: where it is, the others are
        if any(fnmatch(name, pattern) and name.count("/") == pattern.count("/") for pattern in _SMALL):
            path = repository.download(name, listing.commit)
    repository.remember(revision, path)
    return Snapshot(listing.commit, path.parent, listing.files)


def download_weights(model: str, at: Snapshot) -> None:
    """Download the weights of a model, if the hub's cache lacks them.

    Raises:
        HubError: It has none that can be read, or the hub does not deliver them.
    """
    for name in weight_names(at):
        Repository(model).download(name, at.commit)


def weight_names(at: Snapshot) -> list[str]:
    """Return the names of a model's weight files: one file, or the parts that its index names.

    Raises:
        HubError: The listing of its files has none, or the index cannot be read.
    """
    index = at.directory / INDEX
    if WEIGHTS in (at.listed or ()) or (at.directory / WEIGHTS).is_file():
        return [WEIGHTS]
    if index.is_file():
        return _parts(index)
    if at.listed is None:  # not asked: it has no index, so that it has the one file
        return [WEIGHTS]
    pickles = [name for name in at.listed if name.endswith(PICKLES) and name != "training_args.bin"]
    raise HubError(
        f"it has no {WEIGHTS}" + (f"; {pickles[0][:60]} is a pickle, which is not read" if pickles else ""),
        "Name a revision that has safetensors files, or save it with save_pretrained, which writes such files",
    )


def _parts(index: Path) -> list[str]:
    try:
        names = {str(name) for name in json.loads(index.read_bytes())["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HubError(f"its {INDEX} does not say which files hold the weights", "Name another revision") from error
    return sorted(names)


def _few(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(name[:60] for name in names[:8]) or "none") + more
