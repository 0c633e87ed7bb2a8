"""`check-method`: try the whole contract on one method, and report what its author must fix.

Every promise runs on a tiny encoder, decoder and encoder-decoder, and on more networks if asked for. It runs with the
method's defaults and with one other value of each hyperparameter, or with values that are given alone. A setting or a
network that the method rejects with a UserError is skipped, not failed. A method that rejects every network fails.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from peftbench.errors import unknown_method
from peftbench.method.base import Method
from peftbench.method.registry import discover, make, schema, source
from peftbench.records import user_file
from peftbench.verify.contract import PROMISES, Case, Promise, PromiseVerdict, behaviour, check, skip_reason, variants
from peftbench.verify.contract.networks import FAMILIES

OnCase = Callable[[Case, list[PromiseVerdict] | str], None]


@dataclass
class Examination:
    """The result of checking one method.

    Attributes:
        method: the class that was checked.
        tried: each case with the verdicts of its promises.
        refused: each case that the method rejects, with its reason.
        given: the hyperparameters that alone were to be tried; empty for the defaults and other values of each.
    """

    method: type[Method]
    tried: list[tuple[Case, list[PromiseVerdict]]] = field(default_factory=list)
    refused: list[tuple[Case, str]] = field(default_factory=list)
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def networks(self) -> list[str]:
        """The networks on which at least one case was tried."""
        return list(dict.fromkeys(case.backbone for case, _ in self.tried))

    @property
    def refusals(self) -> dict[str, str]:
        """The networks that the method rejects at its defaults, or the given values, with the reason."""
        return {case.backbone: why for case, why in self.refused if case.hyper == self.given}

    def broken(self, promise: Promise) -> list[tuple[Case, PromiseVerdict]]:
        """Return the cases that break a promise, each with the verdict."""
        return [(c, v) for c, verdicts in self.tried for v in verdicts if v.promise == promise.__name__ and not v.kept]

    def tries(self, promise: Promise) -> int:
        """Return the number of cases on which a promise was tried."""
        return sum(v.promise == promise.__name__ for _, verdicts in self.tried for v in verdicts)

    @property
    def sound(self) -> bool:
        """Whether at least one case was tried and no promise is broken."""
        return bool(self.tried) and not any(self.broken(p) for p in PROMISES)


def chosen(name_or_file: str, plugins: Iterable[Path] = ()) -> list[type[Method]]:
    """Find the methods to check.

    Args:
        name_or_file: the name of a method, or a Python file that registers methods.
        plugins: files with further methods.

    Returns:
        The method of that name, or all methods of the file.

    Raises:
        UserError: no method has that name, or a file cannot be loaded.
    """
    known = discover(plugins)
    if not name_or_file.endswith(".py"):
        if name_or_file not in known:
            raise unknown_method(name_or_file, known)
        return [known[name_or_file]]
    path = user_file.resolved(Path(name_or_file))
    if path not in map(source, known.values()):
        known = discover([path])
    return [cls for cls in known.values() if source(cls).resolve() == path]


def examine(
    cls: type[Method],
    on_case: OnCase = lambda case, result: None,
    networks: Iterable[str] = tuple(FAMILIES),
    given: Mapping[str, Any] | None = None,
) -> Examination:
    """Try every promise on every network in every setting, or in the given one.

    Args:
        cls: the method.
        on_case: called after each case, with its verdicts or the reason of the refusal.
        networks: the networks to try it on.
        given: hyperparameters to try alone.

    Raises:
        UserError: a given hyperparameter is unknown, or has a wrong type or range.
    """
    found = Examination(cls, given=given or {})
    if given:
        make(cls, given)
    with _one_thread():
        for case, why in cases(cls, networks, given):
            if why is not None:
                found.refused.append((case, why))
                on_case(case, why)
                continue
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".gradient_checkpointing_enable. is deprecated", FutureWarning)
                found.tried.append((case, check(case, None if _makes(case) else [behaviour.describes_itself])))
            on_case(*found.tried[-1])
    return found


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute in one thread: on networks this small, further threads mostly wait for each other, at full load."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def cases(
    cls: type[Method], networks: Iterable[str], given: Mapping[str, Any] | None = None
) -> Iterator[tuple[Case, str | None]]:
    """Yield each setting on each network, with the reason if the method rejects it. Rejected defaults end a network."""
    for network in networks:
        for hyper in settings(cls, given):
            case = Case(cls, hyper, network)
            try:
                why = skip_reason(case) if _makes(case) else None
            except Exception:  # a bug, not a refusal: the promises raise it again and report it
                why = None
            yield case, why
            if why is not None and not hyper:
                break


def settings(cls: type[Method], given: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Return the hyperparameters to try: the given ones, `variants`, or the defaults if the fields have invalid types.

    `describes_itself` reports invalid types.
    """
    if given:
        return [dict(given)]
    return variants(cls) if _works(lambda: schema(cls)) else [{}]


def _makes(case: Case) -> bool:
    """Whether the method can be instantiated. If not, only `describes_itself` runs, and reports why."""
    return _works(lambda: case.made)


def _works(act: Callable[[], object]) -> bool:
    try:
        act()
    except Exception:  # the class under test is foreign code and may raise anything; a promise reports it
        return False
    return True


def setting(hyper: Mapping[str, Any]) -> str:
    """Return hyperparameters as text: "rank=2", or "defaults"."""
    return " ".join(f"{k}={v}" for k, v in hyper.items()) or "defaults"
