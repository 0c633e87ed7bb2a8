"""The Hugging Face hub, asked in one place: which commit, which files, and each file by its commit.

The hub is asked once for a repository, with a deadline. Files are kept in the hub's own cache (HF_HOME, HF_HUB_CACHE),
where later commands find them without the hub. Only files that are named are downloaded; nothing in them is executed.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from peftbench.backbones.hub_errors import HubError, NoSuchRevision, endpoint, explain
from peftbench.records import scratch

__all__ = ["HubError", "NoSuchRevision", "Repository", "revisions"]

MAIN = "main"
QUIET_SECONDS = 2.0  # after which a user is told what is waited for
RESTARTS = 5  # of a download from the beginning of its file, as the client tries five times otherwise

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Listing:
    """The files of a repository at one commit."""

    commit: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Repository:
    """A model or a data set on the hub.

    Attributes:
        name: "OWNER/NAME".
        kind: "model" or "dataset".
    """

    name: str
    kind: str = "model"

    def listing(self, revision: str | None = None) -> Listing:
        """Ask the hub for the commit and the files of a revision.

        Args:
            revision: Commit, branch or tag; None for the main branch.

        Raises:
            HubError: The hub refuses, or does not answer in time.
        """
        from huggingface_hub import HfApi, constants

        seconds = constants.HF_HUB_ETAG_TIMEOUT
        try:
            info: Any = _within(
                seconds,
                lambda: HfApi().repo_info(self.name, repo_type=self.kind, revision=revision, timeout=seconds),
                f"{self.kind} {self.name}",
            )
            return Listing(str(info.sha), tuple(f.rfilename for f in info.siblings or ()))
        except Exception as error:  # the client raises a different class for each way a hub can fail
            raise explain(error, self.name, self.kind, revision) from error

    def download(self, file: str, commit: str) -> Path:
        """Return the path of a file in the hub's cache; download it first if it is missing.

        Raises:
            HubError: The hub refuses, or does not deliver it.
        """
        from huggingface_hub import hf_hub_download

        try:
            bar = _bar_that_gives_up()
            return Path(hf_hub_download(self.name, file, repo_type=self.kind, revision=commit, tqdm_class=bar))
        except Exception as error:
            raise explain(error, self.name, self.kind, commit, file) from error

    def cached(self, file: str, revision: str | None = None) -> Path | None:
        """Return the path of a file in the hub's cache; None if it is not there. The hub is not asked."""
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        with suppress(HFValidationError):
            found = try_to_load_from_cache(self.name, file, repo_type=self.kind, revision=revision)
            return Path(found) if isinstance(found, str) else None
        return None

    def remember(self, revision: str | None, file: Path) -> None:
        """Keep in the hub's cache that a revision is the commit of `file`, so that it is found without the hub.

        The hub's client does so itself only for files that are asked for by branch. A cache that cannot be written is
        left as it is: the files are there, and only their branch is not known offline.
        """
        snapshot = file.parent
        while snapshot.parent.name != "snapshots":
            snapshot = snapshot.parent
        ref = snapshot.parents[1] / "refs" / (revision or MAIN)
        if revision == snapshot.name or (ref.is_file() and ref.read_text(encoding="utf-8") == snapshot.name):
            return
        with suppress(OSError):
            ref.parent.mkdir(parents=True, exist_ok=True)
            part = scratch.beside(ref)
            part.write_text(snapshot.name, encoding="utf-8")
            os.replace(part, ref)

    def note_use_of_cache(self, error: HubError, commit: str) -> None:
        """Tell the user that the hub did not answer, and which commit of the local cache is used instead."""
        from huggingface_hub import constants

        if not constants.is_offline_mode():  # who works offline knows it
            _log.warning("note: %s %s: %s; commit %s of the local cache is used", *self._named, error.reason, commit)

    @property
    def _named(self) -> tuple[str, str]:
        return self.kind, self.name


def _bar_that_gives_up() -> Any:
    """Return the class of the client's progress bar, with an end to downloads that begin again and again.

    The client counts its retries anew whenever data arrive. Where a server cuts every answer off and cannot go on in
    the middle of a file, it would retry for ever; it takes back what the bar has counted each time.
    """
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        restarts = 0

        def update(self, n: float | None = 1) -> bool | None:
            self.restarts += n is not None and n < 0
            if self.restarts > RESTARTS:
                raise ConnectionResetError("every answer is cut off")
            return super().update(n)

    return Bar


def revisions(name: str, kind: str) -> list[str]:
    """Return the branches and tags of a repository; none if the hub does not list them."""
    from huggingface_hub import HfApi, constants

    with suppress(Exception):  # for a message about another error, which must not be lost
        refs = _within(
            constants.HF_HUB_ETAG_TIMEOUT,
            lambda: HfApi().list_repo_refs(name, repo_type=kind),
            f"the revisions of {name}",
        )
        return [ref.name for ref in (*refs.branches, *refs.tags)]
    return []


def _within(seconds: float, ask: Callable[[], T], what: str) -> T:
    """Return the result of `ask`, which has so many seconds; after the first few, tell the user what is waited for.

    The client's own time limit is for each part of an answer, and does not cover the look-up of a name.
    """
    results: list[T] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            results.append(ask())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(min(seconds, QUIET_SECONDS))
    if thread.is_alive():
        _log.warning("waiting for %s (%s), for up to %.0f s", endpoint(), what, seconds)
        thread.join(max(0.0, seconds - QUIET_SECONDS))
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError
    return results[0]
