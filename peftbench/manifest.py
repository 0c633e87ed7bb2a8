"""What a plan must know about methods and models, kept in a small cache so that planning imports no torch.

Method files import torch, and so does building a network to find its sites. Both are asked once; the answers are plain
JSON under the cache directory, in files whose names hash everything that they derive from: the method files, the
plugins, the code that counts, the versions of the packages. A damaged file is not trusted but made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import peftbench
from peftbench import cache, findings
from peftbench.errors import UserError, unknown
from peftbench.sites import Sites
from peftbench.spec import BackboneSpec, TaskSpec, digest

ENGINE = Path(peftbench.__file__).parent


@dataclass(frozen=True)
class MethodFacts:
    """A method's class facts and hyperparameters as plain data; `schema` is the JSON Schema of the latter by name."""

    name: str
    paper: str
    formula: str
    doc: str
    lr: float
    lr_source: str
    size_knob: str | None
    size_formula: str
    needs: str
    caveats: str
    version: int
    defaults: Mapping[str, Any]
    schema: Mapping[str, Mapping[str, Any]]
    source: str
    search_space: Mapping[str, Sequence[Any]] = field(default_factory=dict)


class BadHyper(UserError):
    """Hyperparameters of a wrong type or range; `mistakes` are (field, given, what is valid)."""

    def __init__(self, name: str, mistakes: list[tuple[str, Any, str]]) -> None:
        super().__init__("; ".join(f"{name}.{key} = {given!r}: {valid}" for key, given, valid in mistakes))
        self.mistakes = mistakes


@dataclass
class Manifest:
    """The facts, from the cache where it has them."""

    plugins: tuple[Path, ...] = ()
    folder: Path = field(default_factory=lambda: cache.root() / "manifest")
    _stores: dict[str, Store] = field(default_factory=dict)

    def methods(self) -> dict[str, MethodFacts]:
        """Every method by name, plugins included."""
        store = self._store("methods", self._methods_key())
        facts = store.get("all", lambda: {n: asdict(f) for n, f in read_methods(self.plugins).items()})
        return {name: MethodFacts(**f) for name, f in facts.items()}

    def hyper(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """All hyperparameters of a method, `given` checked and completed. Raises BadHyper."""
        store = self._store("methods", self._methods_key())
        return store.get(f"hyper {name} {digest(given)}", lambda: _checked(name, given, self.plugins))

    def parameters(self, name: str, hyper: Mapping[str, Any], sites: Sites) -> int:
        """The trainable parameters of a method on a network, head excluded, by the method's own formula."""
        store = self._store("methods", self._methods_key())
        key = f"parameters {name} {digest(hyper)} {_sites_digest(sites)}"
        return store.get(key, lambda: _make(name, hyper, self.plugins).parameters(sites))

    def sites(
        self, model: str, labels: int, causal: bool, revision: str | None = None, roles: Mapping[str, Any] | None = None
    ) -> Sites:
        """The sites of a base model with a head of `labels` outputs, or as a causal model."""
        files = [*(ENGINE / "backbones").glob("*.py"), ENGINE / "sites.py"]
        key = {"code": _sha_of(files), "packages": versions("torch", "transformers")}
        store = self._store("sites", digest(key))
        asked = {"model": self.fingerprint(model, revision), "roles": roles, "labels": labels, "causal": causal}

        def build() -> dict[str, Any]:
            from peftbench.backbones.load import skeleton

            kind = "generation" if causal else "classification"
            return json.loads(json.dumps(skeleton(model, kind, labels, revision, roles).as_dict()))

        return Sites.from_dict(store.get(digest(asked), build))

    def fingerprint(self, model: str, revision: str | None = None) -> str:
        """The identity of a base model's weights."""
        from peftbench.backbones import source

        return source.fingerprint(model, revision)

    def mean_tokens(self, backbone: BackboneSpec, task: TaskSpec, max_length: int, data_dir: Path | None) -> float:
        """Tokens of a training example, padding left out: the mean over the task's split."""
        asked = [backbone.fingerprint, task.fingerprint, task.version, max_length]
        store = self._store("tokens", digest(versions("transformers", "tokenizers")))

        def count() -> float:
            from peftbench.session import Session

            session = Session("cpu", data_dir=data_dir)
            dataset = session.dataset(task)
            encoded = session.encode(dataset, session.backbone(replace(backbone, compile=False), dataset), max_length)
            return float(encoded["train"].lengths.mean())

        return float(store.get(digest(asked), count))

    def save(self) -> None:
        """Write what was learned since; the answers given so far hold without it."""
        for store in self._stores.values():
            store.save()

    def _methods_key(self) -> str:
        if "methods" in self._stores:
            return self._stores["methods"].key
        files = [*method_files(), ENGINE / "method.py", ENGINE / "sites.py", *self.plugins]
        for path in self.plugins:
            if not path.is_file():
                raise UserError(f"no plugin file {path}; --plugin takes the path of a file that registers a method")
        points = sorted((p.name, p.value, _package_sha(p.module)) for p in entry_points(group="peftbench.methods"))
        return digest({"code": _sha_of(files), "points": points, "packages": versions("pydantic", "torch")})

    def _store(self, kind: str, key: str) -> Store:
        if kind not in self._stores:
            self._stores[kind] = Store(self.folder, kind, key)
        return self._stores[kind]


class Store:
    """One cache file: answers by question. Written whole or not at all; not trusted unless its checksum fits."""

    def __init__(self, folder: Path, kind: str, key: str) -> None:
        self.key, self.path, self.changed = key, folder / f"{kind}-{key[:24]}.json", False
        self.answers = self._read()

    def get(self, question: str, ask: Callable[[], Any]) -> Any:
        if question not in self.answers:
            self.answers[question] = json.loads(json.dumps(ask()))
            self.changed = True
        return self.answers[question]

    def put(self, question: str, answer: Any) -> None:
        """Keep an answer that is there already, unless one is kept."""
        self.get(question, lambda: answer)

    def save(self) -> None:
        if not self.changed:
            return
        answers = {**self._read(), **self.answers}  # another process may have learned something meanwhile
        content = json.dumps({"checksum": digest(answers), "answers": answers}).encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.path.parent, suffix=".tmp")
            try:
                with os.fdopen(handle, "wb") as f:
                    f.write(content)
                os.replace(temporary, self.path)
            except OSError:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as e:
            raise UserError(
                f"cannot write the cache at {self.path.parent}: {e.strerror}. Free some space there or give another "
                "directory in the environment variable PEFTBENCH_CACHE."
            ) from e
        self.changed = False

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_bytes())
            return content["answers"] if content["checksum"] == digest(content["answers"]) else {}
        except (OSError, ValueError, KeyError, TypeError):  # absent, cut short or foreign: made again
            return {}


def read_methods(plugins: Iterable[Path] = ()) -> dict[str, MethodFacts]:
    """The facts from the method classes themselves; imports torch."""
    import inspect

    from peftbench import method

    found = {}
    for name, cls in method.discover(plugins).items():
        found[name] = MethodFacts(
            name=name,
            paper=cls.paper,
            formula=cls.formula,
            doc=inspect.getdoc(cls) or "",
            lr=cls.lr,
            lr_source=cls.lr_source,
            size_knob=cls.size_knob,
            size_formula=cls.size_formula,
            needs=cls.needs,
            caveats=cls.caveats,
            version=cls.version,
            defaults=method.defaults(cls),
            schema=method.schema(cls).model_json_schema().get("properties", {}),
            source=str(method.source(cls)),
            search_space={key: list(values) for key, values in cls.search_space.items()},
        )
    return found


def method_files() -> list[Path]:
    """The files of `peftbench.methods`, found without importing them."""
    spec = find_spec("peftbench.methods")
    places = list(spec.submodule_search_locations or []) if spec else []
    if not places:
        raise UserError("peftbench.methods is not there; install peftbench (in a checkout: pip install -e .)")
    return sorted(p for place in places for p in Path(place).glob("*.py"))


def _make(name: str, hyper: Mapping[str, Any], plugins: Iterable[Path]) -> Any:
    from peftbench import method

    return method.make(method.find(name, plugins), hyper)


def _checked(name: str, given: Mapping[str, Any], plugins: Iterable[Path]) -> dict[str, Any]:
    from pydantic import ValidationError

    from peftbench import method

    cls = method.find(name, plugins)
    known = method.defaults(cls)
    for key in given:
        if key not in known:
            raise unknown("hyperparameter", key, known, where=name)
    try:
        checked = dict(method.schema(cls).model_validate(dict(given)))
    except ValidationError as e:
        mistakes = [(".".join(map(str, m["loc"])), m["input"], findings.said(m)) for m in e.errors()]
        raise BadHyper(name, mistakes) from e
    try:
        instance = cls(**checked)
    except ValueError as e:  # a method may refuse a combination in __post_init__
        raise BadHyper(name, [("", dict(given), str(e))]) from e
    return {key: getattr(instance, key) for key in known}


def _sites_digest(sites: Sites) -> str:
    return digest(sites.as_dict())


def _sha_of(files: Iterable[Path]) -> dict[str, str]:
    return {p.as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(set(files)) if p.is_file()}


def _package_sha(module: str) -> dict[str, str]:
    """The Python files of the top-level package that a plugin's entry point lives in."""
    spec = find_spec(module.partition(".")[0])
    if spec is None:
        return {}
    places = [Path(p) for p in spec.submodule_search_locations or []]
    return _sha_of([f for p in places for f in p.rglob("*.py")] or ([Path(spec.origin)] if spec.origin else []))


def versions(*packages: str) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
