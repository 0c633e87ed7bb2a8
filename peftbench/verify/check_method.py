"""`check-method`: the whole contract on one method, told so that its author knows what to mend.

Every promise is tried on a tiny encoder and a tiny decoder, with the method's defaults and with one other value of each
hyperparameter. A setting or a network that the method itself refuses with a UserError is not held against it, unless
it refuses every network.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftbench.errors import unknown_method
from peftbench.method.base import Method
from peftbench.method.registry import discover, schema, source
from peftbench.verify.contract import PROMISES, Case, Promise, Verdict, behaviour, check, excuse, variants

NETWORKS = {"tiny-encoder": "an encoder", "tiny-decoder": "a decoder", "tiny-t5": "an encoder-decoder"}

Tell = Callable[[Case, list[Verdict] | str], None]


@dataclass
class Examination:
    """What came of one method: verdicts by case, and the cases that it refused with the reason."""

    method: type[Method]
    tried: list[tuple[Case, list[Verdict]]] = field(default_factory=list)
    refused: list[tuple[Case, str]] = field(default_factory=list)

    @property
    def networks(self) -> list[str]:
        """The networks on which something was tried."""
        return list(dict.fromkeys(case.backbone for case, _ in self.tried))

    @property
    def refusals(self) -> dict[str, str]:
        """Networks that the method's defaults refuse, with the reason."""
        return {case.backbone: why for case, why in self.refused if not case.hyper}

    def broken(self, promise: Promise) -> list[tuple[Case, Verdict]]:
        return [(c, v) for c, said in self.tried for v in said if v.promise == promise.__name__ and not v.kept]

    def tries(self, promise: Promise) -> int:
        return sum(v.promise == promise.__name__ for _, said in self.tried for v in said)

    @property
    def sound(self) -> bool:
        """Something was tried, and nothing is broken."""
        return bool(self.tried) and not any(self.broken(p) for p in PROMISES)


def chosen(name_or_file: str, plugins: Iterable[Path] = ()) -> list[type[Method]]:
    """The methods to check: the one of this name, or all that a file ending in .py registers. Raises UserError."""
    known = discover(plugins)
    if not name_or_file.endswith(".py"):
        if name_or_file not in known:
            raise unknown_method(name_or_file, known)
        return [known[name_or_file]]
    path = Path(name_or_file).expanduser().resolve()
    if path not in map(source, known.values()):
        known = discover([path])
    return [cls for cls in known.values() if source(cls).resolve() == path]


def examine(cls: type[Method], tell: Tell = lambda case, said: None) -> Examination:
    """Try every promise in every setting; `tell` hears of each case as it is done."""
    found = Examination(cls)
    for case, why in cases(cls):
        if why is not None:
            found.refused.append((case, why))
            tell(case, why)
            continue
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".gradient_checkpointing_enable. is deprecated", FutureWarning)
            found.tried.append((case, check(case, None if _makes(case) else [behaviour.describes_itself])))
        tell(*found.tried[-1])
    return found


def cases(cls: type[Method]) -> Iterator[tuple[Case, str | None]]:
    """Each setting on each network, with the method's own reason where it refuses; a refused default ends a network."""
    for network in NETWORKS:
        for hyper in settings(cls):
            case = Case(cls, hyper, network)
            try:
                why = excuse(case) if _makes(case) else None
            except Exception:  # not a refusal but a fault: the promises will meet it again, and tell it
                why = None
            yield case, why
            if why is not None and not hyper:
                break


def settings(cls: type[Method]) -> list[dict[str, Any]]:
    """`variants`, or the defaults alone where the fields' types have no meaning: `describes_itself` tells of it."""
    return variants(cls) if _works(lambda: schema(cls)) else [{}]


def _makes(case: Case) -> bool:
    """Whether there is an instance to try; if not, `describes_itself` fails and says all that the others would."""
    return _works(lambda: case.made)


def _works(act: Callable[[], object]) -> bool:
    try:
        act()
    except Exception:  # the class under test is foreign code: it may raise anything; a promise tells what
        return False
    return True


def setting(hyper: Mapping[str, Any]) -> str:
    return " ".join(f"{k}={v}" for k, v in hyper.items()) or "defaults"
