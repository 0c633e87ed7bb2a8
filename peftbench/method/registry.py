"""Find methods in `methods/`, entry points and plugin files, and make one from its hyperparameters.

Importing this module imports neither torch nor any method; `discover` does.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from functools import cache
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model, field_validator

from peftbench.errors import UserError, shown, unknown, unknown_method
from peftbench.method.base import Method
from peftbench.records import user_file
from peftbench.records.trials import BOUNDS

PACKAGE = "peftbench.methods"  # of the method files
GROUP = "peftbench.methods"  # entry points of other packages
RESERVED = ("label", "lr", "search_space", "exempt")  # settings of a method in experiment files that are not fields

M = TypeVar("M", bound=type[Method])

_registry: dict[str, type[Method]] = {}
_sources: dict[str, str] = {}  # method name -> file
_schemas: dict[type[Method], type[BaseModel]] = {}
_plugins: dict[Path, str] = {}  # plugin file -> module name, so that a file is loaded once


def register(cls: M) -> M:
    """Class decorator: register a method under its ``name``.

    Raises:
        UserError: Another file registered a method of this name.
        TypeError: The class lacks something that a method must have.
    """
    _check(cls)
    source = getattr(sys.modules.get(cls.__module__), "__file__", None) or cls.__module__
    taken = _sources.get(cls.name)
    if taken is not None and taken != source:
        raise UserError(f"two methods are named {cls.name!r}: {taken} and {source}; rename one of them")
    _registry[cls.name], _sources[cls.name] = cls, source
    return cls


def discover(plugins: Iterable[Path | str] = ()) -> dict[str, type[Method]]:
    """Return every method by name.

    Args:
        plugins: Python files that register further methods.

    Returns:
        The methods of ``methods/``, of the entry-point group ``peftbench.methods`` and of `plugins`.

    Raises:
        UserError: A file does not load or registers no method.
    """
    package = importlib.import_module(PACKAGE)
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.startswith("_"):
            _load_own(module.name)
    for point in installed():
        try:
            point.load()
        except ImportError as error:
            raise UserError(
                f"the plugin {point.value!r} (entry point {point.name!r}) does not import: {error}"
            ) from error
    for path in plugins:
        _load_file(Path(path))
    return dict(sorted(_registry.items()))


@cache
def installed() -> EntryPoints:
    """Return the methods of other packages. Every package's metadata are read for it, which a process does once."""
    return entry_points(group=GROUP)


def find(name: str, plugins: Iterable[Path | str] = ()) -> type[Method]:
    """Return the method called `name`.

    Args:
        name: Name of the method.
        plugins: As in `discover`.

    Raises:
        UserError: There is no such method; the message has the nearest name.
    """
    known = discover(plugins)
    if name not in known:
        raise unknown_method(name, known)
    return known[name]


def make(cls: type[Method], hyper: Mapping[str, Any], where: str = "") -> Method:
    """Make an instance of a method from checked hyperparameters.

    Args:
        cls: The method class.
        hyper: Hyperparameters by name; the others have their defaults.
        where: Location of the hyperparameters for the message, e.g. a file name.

    Raises:
        UserError: A hyperparameter is unknown, or has a wrong type or range; the message lists every mistake.
    """
    names = [f.name for f in fields(cls)]
    for key in hyper:
        if key not in names:
            raise unknown("hyperparameter", key, names, where=where or cls.name)
    try:
        return cls(**dict(schema(cls).model_validate(dict(hyper))))
    except ValidationError as error:
        said = [f"{'.'.join(map(str, e['loc']))} = {shown(e['input'])}: {e['msg']}" for e in error.errors()]
        raise UserError(f"{where or cls.name}: {'; '.join(said)}") from error


FLOAT32_MAX = (2 - 2**-23) * 2.0**127


def schema(cls: type[Method]) -> type[BaseModel]:
    """Return the hyperparameters as a pydantic model: types, ranges, defaults, descriptions."""
    if cls not in _schemas:  # pydantic takes milliseconds to make one
        _schemas[cls] = _schema(cls)
    return _schemas[cls]


def _schema(cls: type[Method]) -> type[BaseModel]:
    hints = get_type_hints(cls, include_extras=True)
    given: dict[str, Any] = {f.name: (hints[f.name], ... if f.default is MISSING else f.default) for f in fields(cls)}
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)  # no infinite number trains anything
    checks: dict[str, Any] = {"fits": field_validator("*", mode="after")(_held_by_float32)}
    return create_model(cls.__name__, __config__=config, __validators__=checks, **given)


def bounds(schema: Mapping[str, Any]) -> dict[str, float]:
    """Return the limits of a numeric hyperparameter, by their names in JSON Schema; of another value, none.

    Args:
        schema: the JSON Schema of the hyperparameter.

    >>> bounds({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "null"}]})
    {'exclusiveMinimum': 0}
    """
    numbers = [s for s in (schema, *schema.get("anyOf", [])) if s.get("type") in ("integer", "number")]
    if not numbers:
        return {}
    if listed := numbers[0].get("enum"):
        return {"minimum": min(listed), "maximum": max(listed)}
    return {name: numbers[0][name] for name in BOUNDS if name in numbers[0]}


def _held_by_float32(value: Any) -> Any:
    if isinstance(value, float) and abs(value) > FLOAT32_MAX:
        raise ValueError("must be a number that float32 can hold, at most 3.4e38")
    return value


def defaults(cls: type[Method]) -> dict[str, Any]:
    """Return the hyperparameters with their default values."""
    return {f.name: f.default if f.default is not MISSING else None for f in fields(cls)}


def source(cls: type[Method]) -> Path:
    """Return the file that defines the method."""
    return Path(_sources[cls.name])


def folders() -> set[Path]:
    """Return the folders with the code of the methods that are loaded: their own files, and helpers beside them."""
    return {Path(source).resolve().parent for source in _sources.values()}


def _check(cls: type[Method]) -> None:
    """Raise `TypeError` if a class cannot be a method, naming what it lacks."""
    for fact in ("name", "paper", "lr"):
        if not hasattr(cls, fact):
            raise TypeError(f"method class {cls.__name__} must set the class attribute `{fact}`")
    for needed in ("attach", "parameters"):
        if getattr(cls, needed) is getattr(Method, needed):
            raise TypeError(f"method class {cls.__name__} must define `{needed}`")
    if "__dataclass_params__" not in cls.__dict__:
        raise TypeError(f"method class {cls.__name__} must be decorated with @dataclass(frozen=True), under @register")
    for f in fields(cls):
        if f.name in RESERVED:
            raise TypeError(
                f"method class {cls.__name__}: experiment files use {f.name!r} themselves; rename the field"
            )
        if f.default is MISSING:
            raise TypeError(f"method class {cls.__name__}: the field {f.name!r} needs a default")
    if cls.size_knob is not None and cls.size_knob not in {f.name for f in fields(cls)}:
        raise TypeError(f"method class {cls.__name__}: size_knob {cls.size_knob!r} is none of its fields")


def _load_own(name: str) -> None:
    try:
        module = importlib.import_module(f"{PACKAGE}.{name}")
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"methods/{name}.py does not load: {_describe(error)}") from error
    if module.__file__ not in _sources.values():
        raise UserError(f"{module.__file__} registers no method; decorate its class with @register, or move it away")


def _load_file(path: Path) -> None:
    path = user_file.resolved(path)
    if path in _plugins:
        return
    if not (user_file.exists(path) and path.is_file()):
        raise UserError(f"no plugin file {path}; --plugin takes the path of a Python file that registers a method")
    name = f"peftbench_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file; a plugin's name ends in .py")
    module = importlib.util.module_from_spec(spec)
    before = set(_registry)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a plugin may raise an error of any kind, or exit
        del sys.modules[name]
        raise UserError(f"the plugin {path} does not load: {_describe(error, path)}") from error
    if set(_registry) == before and path.as_posix() not in _sources.values():
        raise UserError(f"the plugin {path} registers no method; decorate its class with @register")
    _plugins[path] = name


def _describe(error: BaseException, path: Path | None = None) -> str:
    """Describe an error, with the line of the file at `path` if known."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if path and Path(f.filename) == path]
    return f"{type(error).__name__}: {error}" + (f" (line {lines[-1]})" if lines else "")
