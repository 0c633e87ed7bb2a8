"""The facts about every method, cached so that planning and `--help` need no torch.

Method files import torch. Their facts are read once and cached as plain JSON (`cache.Store`). The key covers everything
that they depend on: the method files, the plugins, the counting code, and the versions of the packages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peftbench import cache, errors
from peftbench.backbones.sites import Sites
from peftbench.cache import Store, Stores
from peftbench.errors import UserError, shown, unknown
from peftbench.method import registry
from peftbench.records import user_file
from peftbench.records.spec import digest


@dataclass(frozen=True)
class MethodFacts:
    """A method's class facts and hyperparameters as plain data. `schema` has the JSON Schema of each hyperparameter."""

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
    """Hyperparameters of a wrong type or range.

    Attributes:
        mistakes: (field, given value, what is valid) for each mistake.
    """

    def __init__(self, name: str, mistakes: list[tuple[str, Any, str]]) -> None:
        super().__init__("; ".join(f"{name}.{key} = {shown(given)}: {valid}" for key, given, valid in mistakes))
        self.mistakes = mistakes


@dataclass
class Catalogue:
    """The facts of every method, from the cache if it has them.

    Attributes:
        plugins: Python files that register further methods.
        stores: The cache's stores.
    """

    plugins: tuple[Path, ...] = ()
    stores: Stores = field(default_factory=Stores)

    def methods(self) -> dict[str, MethodFacts]:
        """Return the facts of every method by name, plugins included."""
        facts = self._store().get("all", lambda: {n: asdict(f) for n, f in read_methods(self.plugins).items()})
        return {name: MethodFacts(**f) for name, f in facts.items()}

    def hyper(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return all hyperparameters of a method: `given`, checked, and the defaults of the others.

        Raises:
            UserError: The method or a hyperparameter is unknown.
            BadHyper: A value has a wrong type or range.
        """
        return self._store().get(f"hyper {name} {digest(given)}", lambda: _checked(name, given, self.plugins))

    def parameters(self, name: str, hyper: Mapping[str, Any], sites: Sites) -> int:
        """Return the trainable parameters of a method on a network, head excluded, by the method's own formula.

        Args:
            name: Name of the method.
            hyper: All its hyperparameters.
            sites: The sites of the network.
        """
        key = f"parameters {name} {digest(hyper)} {digest(sites.as_dict())}"
        return self._store().get(key, lambda: _make(name, hyper, self.plugins).parameters(sites))

    def save(self) -> None:
        """Write new facts to the cache."""
        self.stores.save()

    @cached_property
    def _key(self) -> str:
        """The code of the methods and where it lies, which the facts name."""
        for path in self.plugins:
            if not (user_file.exists(path) and path.is_file()):
                raise UserError(f"no plugin file {path}; --plugin takes the path of a file that registers a method")
        points = sorted((p.name, p.value, _package_sha(p.module)) for p in registry.installed())
        code = cache.code_key("methods", "method", "backbones", files=self.plugins)
        return digest(
            {
                "code": code,
                "points": points,
                "packages": cache.versions("pydantic", "torch"),
                "at": str(cache.method_folder()),
            }
        )

    def _store(self) -> Store:
        return self.stores.open("methods", self._key)


def read_methods(plugins: Iterable[Path] = ()) -> dict[str, MethodFacts]:
    """Read the facts from the method classes; imports torch."""
    import inspect

    facts = {}
    for name, cls in registry.discover(plugins).items():
        facts[name] = MethodFacts(
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
            defaults=registry.defaults(cls),
            schema=registry.schema(cls).model_json_schema().get("properties", {}),
            source=str(registry.source(cls)),
            search_space={key: list(values) for key, values in cls.search_space.items()},
        )
    return facts


def _make(name: str, hyper: Mapping[str, Any], plugins: Iterable[Path]) -> Any:
    return registry.make(registry.find(name, plugins), hyper)


def _checked(name: str, given: Mapping[str, Any], plugins: Iterable[Path]) -> dict[str, Any]:
    from pydantic import ValidationError

    cls = registry.find(name, plugins)
    known = registry.defaults(cls)
    for key in given:
        if key not in known:
            raise unknown("hyperparameter", key, known, where=name)
    try:
        checked = dict(registry.schema(cls).model_validate(dict(given)))
    except ValidationError as e:
        mistakes = [(".".join(map(str, m["loc"])), m["input"], errors.validation_message(m)) for m in e.errors()]
        raise BadHyper(name, mistakes) from e
    try:
        instance = cls(**checked)
    except ValueError as e:  # a method may refuse a combination in __post_init__
        raise BadHyper(name, [("", dict(given), str(e))]) from e
    return {key: getattr(instance, key) for key in known}


def _package_sha(module: str) -> dict[str, str]:
    """Return the hashes of the Python files of the top-level package that defines a plugin's entry point."""
    spec = find_spec(module.partition(".")[0])
    if spec is None:
        return {}
    places = [Path(p) for p in spec.submodule_search_locations or []]
    files = [f for p in places for f in p.rglob("*.py")] or ([Path(spec.origin)] if spec.origin else [])
    return cache.file_hashes(files)
