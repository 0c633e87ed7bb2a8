"""The plugin contract: what a fine-tuning method is, and how methods are found.

A method is a frozen dataclass in one file of ``methods/``: its fields are its hyperparameters, and nothing else is. It
does two things to a network, both through `Edit`: it swaps modules at named roles, or it thaws base parameters.

    @register
    @dataclass(frozen=True)
    class LoRA(Method):
        '''What it does, in the paper's words and symbols.'''
        name, paper, lr, size_knob = "lora", "arXiv:2106.09685", 5e-4, "rank"
        rank: Annotated[int, Field(ge=1, description="r, the rank of the update")] = 8

        def attach(self, edit: Edit) -> None:
            edit.swap("q v", lambda base: LoRALinear(base, self.rank))

Importing this module imports neither torch nor any method; `discover` does.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from peftbench.errors import UserError, unknown, unknown_method
from peftbench.sites import Sites

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from peftbench.edit import Edit


@dataclass(frozen=True)
class Method:
    """Base of every method. Only `attach`, `parameters` and the class facts are required.

    The class's docstring is the method's card. Class facts (set as plain class attributes, without annotation):
    """

    name: ClassVar[str]  # what experiment files call it
    paper: ClassVar[str]  # "arXiv:2106.09685"
    lr: ClassVar[float]  # learning rate where an experiment names none
    lr_source: ClassVar[str] = ""  # where that rate comes from
    formula: ClassVar[str] = ""  # one line for the card, e.g. "h = W x + (alpha/r) B A x"
    size_formula: ClassVar[str] = ""  # what trains, as the card tells it, e.g. "r (in + out) at each site"
    caveats: ClassVar[str] = ""  # what is known about when it fails, with its source: a paper, or a record
    needs: ClassVar[str] = ""  # what a network must have for it, if some lack it: "a task head"; those are refused
    size_knob: ClassVar[str | None] = None  # the field that a parameter budget solves
    # What tuning may draw: for "lr" any rate from the least to the greatest one, for a field one of the values. Beside
    # the rate, the first field counts that neither the experiment's file gives nor a budget solves.
    search_space: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    version: ClassVar[int] = 1  # raise it when a change alters results: older records then no longer count as done
    starts_as_identity: ClassVar[bool] = True  # the paper's own claim; the contract tests hold it to it

    def attach(self, edit: Edit) -> None:
        """Change the network, through `edit` only."""
        raise NotImplementedError(f"{type(self).__name__} must define attach(self, edit)")

    def parameters(self, sites: Sites) -> int:
        """The paper's closed formula for its trainable parameters; the contract tests count them as well."""
        raise NotImplementedError(f"{type(self).__name__} must define parameters(self, sites)")

    def optimizer(self, net: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        """The optimiser over everything in `net` that requires a gradient (the head comes later, from the runner).

        AdamW; weight decay on matrices only, not on biases and scales, as is usual for transformers.
        """
        trained = [p for p in net.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return adamw(net, groups, lr)

    def extra_loss(self, net: nn.Module) -> Tensor | None:
        """A term added to the task's loss at each step; None for none."""
        return None

    def after_step(self, net: nn.Module, done: float) -> None:
        """Called after each optimiser step; `done` is the share of training behind us, in (0, 1].

        The step's gradients are still there, in ``p.grad``, as the optimiser saw them (clipped); they go afterwards.
        """

    def finish(self, edit: Edit) -> None:
        """Called once after training: drop a reparametrisation, prune."""


def adamw(net: nn.Module, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    """AdamW over parameter groups of `net`, in one kernel where its device has that; groups may be empty."""
    import torch

    return torch.optim.AdamW(groups, lr=lr, fused=all(p.device.type in ("cpu", "cuda") for p in net.parameters()))


RESERVED = ("label", "lr", "search_space", "exempt")  # what experiment files say of a method beside its fields

M = TypeVar("M", bound=type[Method])

_registry: dict[str, type[Method]] = {}
_sources: dict[str, str] = {}  # method name -> file it came from
_plugins: dict[Path, str] = {}  # plugin file -> module name, so that a file is loaded once


def register(cls: M) -> M:
    """Class decorator: make a method known by its ``name``. A second class of the same name is an error."""
    _check(cls)
    source = getattr(sys.modules.get(cls.__module__), "__file__", None) or cls.__module__
    taken = _sources.get(cls.name)
    if taken is not None and taken != source:
        raise UserError(f"two methods are named {cls.name!r}: {taken} and {source}; rename one of them")
    _registry[cls.name], _sources[cls.name] = cls, source
    return cls


def discover(plugins: Iterable[Path | str] = ()) -> dict[str, type[Method]]:
    """Every method by name: the files in ``methods/``, the entry-point group ``peftbench.methods``, and `plugins`."""
    package = importlib.import_module("peftbench.methods")
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.startswith("_"):
            _load_own(module.name)
    for point in entry_points(group="peftbench.methods"):
        try:
            point.load()
        except ImportError as error:
            raise UserError(
                f"the plugin {point.value!r} (entry point {point.name!r}) does not import: {error}"
            ) from error
    for path in plugins:
        _load_file(Path(path))
    return dict(sorted(_registry.items()))


def find(name: str, plugins: Iterable[Path | str] = ()) -> type[Method]:
    """The method called `name`, or a `UserError` with the nearest name."""
    known = discover(plugins)
    if name not in known:
        raise unknown_method(name, known)
    return known[name]


def make(cls: type[Method], hyper: Mapping[str, Any], where: str = "") -> Method:
    """An instance with `hyper` checked by type and range; every mistake is named in one `UserError`."""
    names = [f.name for f in fields(cls)]
    for key in hyper:
        if key not in names:
            raise unknown("hyperparameter", key, names, where=where or cls.name)
    try:
        return cls(**dict(schema(cls).model_validate(dict(hyper))))
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, e['loc']))} = {e['input']!r}: {e['msg']}" for e in error.errors())
        raise UserError(f"{where or cls.name}: {said}") from error


def schema(cls: type[Method]) -> type[BaseModel]:
    """The hyperparameters as a pydantic model: types, ranges, defaults, descriptions."""
    hints = get_type_hints(cls, include_extras=True)
    given: dict[str, Any] = {f.name: (hints[f.name], ... if f.default is MISSING else f.default) for f in fields(cls)}
    return create_model(cls.__name__, __config__=ConfigDict(extra="forbid", strict=True), **given)


def defaults(cls: type[Method]) -> dict[str, Any]:
    """The hyperparameters with their default values."""
    return {f.name: f.default if f.default is not MISSING else None for f in fields(cls)}


def source(cls: type[Method]) -> Path:
    """The file that defines the method."""
    return Path(_sources[cls.name])


def _check(cls: type[Method]) -> None:
    """Raises `TypeError` for a class that cannot be a method, saying what it lacks."""
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
        module = importlib.import_module(f"peftbench.methods.{name}")
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"methods/{name}.py does not load: {_told(error)}") from error
    if module.__file__ not in _sources.values():
        raise UserError(f"{module.__file__} registers no method; decorate its class with @register, or move it away")


def _load_file(path: Path) -> None:
    path = path.expanduser().resolve()
    if path in _plugins:
        return
    if not path.is_file():
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
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserError(f"the plugin {path} does not load: {_told(error, path)}") from error
    if set(_registry) == before and path.as_posix() not in _sources.values():
        raise UserError(f"the plugin {path} registers no method; decorate its class with @register")
    _plugins[path] = name


def _told(error: BaseException, path: Path | None = None) -> str:
    """What went wrong, and in which line of the file at `path`, where that is known."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if path and Path(f.filename) == path]
    return f"{type(error).__name__}: {error}" + (f" (line {lines[-1]})" if lines else "")
