"""The user's files that runs read, and their copies on the nodes of a cluster that do not have them.

Files travel in trees: a data directory, a file with a method, a file with data, a directory with a model. A tree's key
is a hash of its content. A node that has the very same files at the same paths, as on a shared file system, reads
those. Any other keeps a copy of the tree in its cache, under the key, and so gets it once.

Embedded models and data, and those of the hub, are none of these: each node has them in its own cache or fetches them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from peftbench import cache, tasks
from peftbench.backbones import model_folder, source
from peftbench.measure import probes
from peftbench.records import user_file
from peftbench.records.spec import RunSpec, Spec

FOLDER = "copies"  # in the cache of a node
PIECE_BYTES = 2**26  # of a file that travel together
FETCHED = ("embedded/", "synthetic/")  # beginnings of the names of tasks whose data no user's file holds


@dataclass(frozen=True)
class Tree:
    """Files below one directory.

    Attributes:
        what: the argument of the session that names it: "data_dir" or "plugins"; "" if specifications name it.
        named: its path as it is named there.
        key: a hash of its content.
        root: the directory below which the files are.
        files: name, bytes and time of change (ns) of each, the name being relative to the root.
        target: what `named` stands for, relative to the root: "" for the root itself.
    """

    what: str
    named: str
    key: str
    root: str
    files: tuple[tuple[str, int, int], ...]
    target: str = ""

    @classmethod
    def of(
        cls, what: str, named: str, root: Path, names: Iterable[str], target: str = "", key: str | None = None
    ) -> Tree:
        """The tree of files that are there; `key` says what is known of their content without reading them."""
        facts = tuple((name, *_facts(root / name)) for name in sorted(set(names)))
        return cls(what, named, key or _hashed(str(root), facts), str(root), facts, target)

    def to_json(self) -> dict[str, Any]:
        """The tree as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, d: Mapping[str, Any]) -> Tree:
        """The tree that `to_json` gave."""
        return cls(**{**d, "files": tuple((name, size, changed) for name, size, changed in d["files"])})

    @property
    def is_here(self) -> bool:
        """Whether this machine has the same files at the same paths."""
        try:
            return all(_facts(Path(self.root) / name) == (size, changed) for name, size, changed in self.files)
        except OSError:
            return False

    @property
    def copy(self) -> Path:
        """Where the copy of the tree is in this machine's cache."""
        return cache.root() / FOLDER / self.key

    @property
    def is_lacking(self) -> bool:
        """Whether this machine has neither the files nor a copy."""
        return not self.is_here and not self.copy.is_dir()

    @property
    def path(self) -> str:
        """The path by which this machine reads what is named."""
        return str((Path(self.root) if self.is_here else self.copy) / self.target)

    def pieces(self) -> Iterator[tuple[str, bytes]]:
        """Yield the files' content in pieces, each with its file's name; a file without content has one."""
        for name, *_ in self.files:
            with open(Path(self.root) / name, "rb") as file:
                yield name, file.read(PIECE_BYTES)
                while piece := file.read(PIECE_BYTES):
                    yield name, piece

    def install(self, pieces: Iterable[tuple[str, Any]], fetched: Callable[[Any], bytes]) -> None:
        """Make the copy of the tree, unless another process of this machine has made it or is making it.

        Args:
            pieces: as `pieces` yields them, but each content as `fetched` takes it.
            fetched: the content of a piece.
        """

        def build(folder: Path) -> None:
            for name, piece in pieces:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                with open(folder / name, "ab") as file:
                    file.write(fetched(piece))

        cache.directory(self.copy, build)


def trees(specs: Iterable[Spec], kwargs: Mapping[str, Any]) -> list[Tree]:
    """The user's files that a session with these arguments reads for these specifications.

    Raises:
        UserError: a file is not there.
    """
    planned = list(specs)
    given = kwargs.get("data_dir")
    data_dir = None if given is None else Path(os.path.abspath(given))
    found = [_one_file("plugins", str(path), Path(path)) for path in kwargs.get("plugins") or ()]
    if data_dir is not None and (names := _data_files(planned, data_dir)):
        found.append(Tree.of("data_dir", str(given), data_dir.parent, names, data_dir.name))
    models = {(s.backbone.model, s.backbone.fingerprint) for s in planned}
    return [*found, *_task_files(planned, data_dir), *(t for m in sorted(models) for t in _model(*m))]


def arguments(kwargs: Mapping[str, Any], found: Sequence[Tree]) -> dict[str, Any]:
    """A session's arguments on this machine, which has the trees or copies of them."""
    by_argument = {name: {t.named: t.path for t in found if t.what == name} for name in ("data_dir", "plugins", "")}
    copies = {named: path for named, path in by_argument[""].items() if named != path}
    own = dict(kwargs)
    if by_argument["data_dir"]:
        own["data_dir"] = by_argument["data_dir"][str(kwargs["data_dir"])]
    if by_argument["plugins"]:
        own["plugins"] = [by_argument["plugins"][str(path)] for path in kwargs["plugins"]]
    return own | ({"copies": copies} if copies else {})


def _data_files(specs: Sequence[Spec], data_dir: Path) -> set[str]:
    """The files of the data directory, or next to it, that tasks and probes read; relative to its parent."""
    read: set[Path] = set()
    for name in {s.task.name for s in specs}:
        if not name.startswith(("local/", *FETCHED)):
            read.update(tasks.files(name, None, data_dir))
    for card in {probes.CARDS[name] for s in specs if isinstance(s, RunSpec) for name in s.probes}:
        if card.reads is not None:
            read.add(probes.file_of(card, data_dir))
    return {path.relative_to(data_dir.parent).as_posix() for path in read}


def _task_files(specs: Sequence[Spec], data_dir: Path | None) -> list[Tree]:
    """The files that tasks of the user's own data name."""
    found: dict[str, Tree] = {}
    for spec in specs:
        if spec.task.name.startswith("local/"):
            options = spec.task.options
            named = [str(options[s]) for s in ("train", "validation", "test") if options.get(s) is not None]
            for text, path in zip(named, tasks.files(spec.task.name, options, data_dir), strict=True):
                if text not in found:
                    found[text] = _one_file("", text, path)
    return list(found.values())


def _model(model: str, fingerprint: str) -> list[Tree]:
    """The files of a model's directory; none for other models, which nodes fetch."""
    if model in source.PRESETS or not user_file.is_folder(user_file.here(model)):
        return []
    root = Path(source.locate(model))
    names = [path.relative_to(root).as_posix() for path in model_folder.loaded_files(root)]
    return [Tree.of("", model, root, names, key=fingerprint)]


def _one_file(what: str, named: str, path: Path) -> Tree:
    absolute = Path(os.path.abspath(path))
    return Tree.of(what, named, absolute.parent, [absolute.name], absolute.name)


def _facts(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache
def _hashed(root: str, files: tuple[tuple[str, int, int], ...]) -> str:
    total = hashlib.sha256()
    for name, *_ in files:
        with open(Path(root) / name, "rb") as file:
            total.update(f"{name}\0".encode() + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
