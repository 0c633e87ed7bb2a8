"""The steps that the page knows: programs, precisions, methods, and the roles that methods adapt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peftbench.estimate.calculator.dimensions import SHARDS, VALUES
from peftbench.estimate.program import programs
from peftbench.estimate.step_estimate import Setting
from peftbench.method.base import Method
from peftbench.method.catalogue import Catalogue
from peftbench.method.registry import find, make

ROLES = ("q v", "q k v o", "q k v o gate up down")
PROGRAMS = ("hf-trainer", "peftbench", "plain")
DTYPES = ("bfloat16", "float32")
SHARDED = "shards"  # the end of the name of a step in shards
ALIKE = {"rslora": "lora", "lora_plus": "lora"}  # the same step: another factor, other rates
CHOOSE_ROLES = ("lora", "dora", "qlora", "qdora", "adalora", "vera", "pissa")
OF_DEFAULTS = ("full", "adapter", "prefix", "prompt", "ia3", "layernorm", "bitfit", "galore")
NOT_OWN = ("dora", "qdora", "vera", "ia3", "adalora")  # whose kernels in peftbench's own step depend on sizes or depth
IRREGULAR = {"gemma2": ("dora", "qdora")}  # their rounds of layers are not alike, so that no two depths tell of others
KNOBS = {"galore": "rank"}  # beside the methods' own size knobs


@dataclass(frozen=True)
class Step:
    """One recorded step of a family.

    Attributes:
        program: Whose step.
        dtype: Of the frozen weights.
        checkpointing: Whether activations are computed again.
        many: Whether there are several texts, of different lengths; else one.
        method: The method.
        roles: Roles that it adapts; empty for its own.
        sharded: Whether several cards share the base's weights.
    """

    program: str
    dtype: str
    checkpointing: bool
    many: bool
    method: str
    roles: str = ""
    sharded: bool = False

    @property
    def key(self) -> str:
        """The name of the recording."""
        short = {"bfloat16": "bf16", "float32": "fp32"}[self.dtype]
        parts = (self.program, short, "ckpt" if self.checkpointing else "all", "many" if self.many else "one")
        return "|".join((*parts, self.method, self.roles, *([SHARDED] if self.sharded else [])))

    def setting(self) -> Setting:
        """Return how the step of a recorded network runs."""
        texts = VALUES["b"] if self.many else 1
        made = setting_of(self.program, self.dtype, self.checkpointing, texts, VALUES["s"])
        return replace(made, shards=SHARDS) if self.sharded else made

    def made(self, size: int) -> Method:
        """Return the method with a size of its knob."""
        return made(self.method, self.roles, size)


def setting_of(
    program: str, dtype: str, checkpointing: bool, batch: int, seq: int, optimizer: str = "adamw"
) -> Setting:
    """Return how a step runs, as `peftbench estimate` would with these options."""
    if program == programs.OWN:
        return Setting(batch, seq, dtype, optimizer, checkpointing)
    parts = {"weights": dtype, "checkpointing": str(checkpointing), "optimizer": optimizer}
    return Setting(batch, seq, program=programs.program(program, parts))


def made(name: str, roles: str = "", size: int | None = None) -> Method:
    """Return a method with a size of its knob, and its defaults for the rest."""
    return make(find(name, ()), Catalogue(()).hyper(name, hyper_of(name, roles, size)))


def hyper_of(name: str, roles: str = "", size: int | None = None) -> dict[str, Any]:
    """Return the hyperparameters of a method that the page sets."""
    hyper: dict[str, Any] = {"roles": roles} if roles else {}
    knob = knob_of(name)
    return hyper if knob is None or size is None else {**hyper, knob: size}


def knob_of(name: str) -> str | None:
    """Return the hyperparameter that sets the size of a method, such as "rank"; None for none."""
    return KNOBS.get(name) or find(name, ()).size_knob


def steps() -> Iterator[Step]:
    """Yield the steps of a family, the most asked for first."""
    ranked = [*_first(), *_rest()]
    for method, roles, dtype in ranked:
        for program in PROGRAMS:
            if program == programs.OWN and method in NOT_OWN:
                continue
            if dtype == "float32" and program == "plain":
                continue
            for many in (True, False):
                for checkpointing in (True, False):
                    yield Step(program, dtype, checkpointing, many, method, roles)
    yield from _sharded()


def _sharded() -> Iterator[Step]:
    """Yield the steps of a model in shards."""
    methods = (("full", ""), *((method, roles) for roles in reversed(ROLES) for method in ("lora", "qlora")))
    for program in (PROGRAMS[0], programs.OWN):
        for method, roles in methods:
            for many in (True, False):
                for checkpointing in (True, False):
                    yield Step(program, "bfloat16", checkpointing, many, method, roles, sharded=True)


def _first() -> Iterator[tuple[str, str, str]]:
    for method in ("lora", "qlora"):
        for roles in (ROLES[2], ROLES[0]):
            yield method, roles, "bfloat16"
    yield "full", "", "bfloat16"
    yield "dora", ROLES[2], "bfloat16"
    yield "qdora", ROLES[2], "bfloat16"
    for method in OF_DEFAULTS[1:]:
        yield method, "", "bfloat16"
    for method in ("vera", "adalora"):
        yield method, ROLES[0], "bfloat16"


def _rest() -> Iterator[tuple[str, str, str]]:
    for method in ("lora", "qlora"):
        yield method, ROLES[1], "bfloat16"
    for method in ("dora", "qdora"):
        yield method, ROLES[0], "bfloat16"
    yield "pissa", ROLES[2], "bfloat16"
    for method in ("full", "lora"):
        yield method, "" if method == "full" else ROLES[2], "float32"
    yield "adalora", ROLES[2], "bfloat16"
    yield "vera", ROLES[2], "bfloat16"
    yield "pissa", ROLES[0], "bfloat16"


def is_left_out(key: str, family: str) -> bool:
    """Whether a recorded step does not stand for those of other sizes or depths."""
    program, _, _, _, method, *_ = key.split("|")
    return method in IRREGULAR.get(family, ()) or (program == programs.OWN and method in NOT_OWN)


def folder_of(family: str, tied: bool, root: Path) -> Path:
    """Return the folder of a family's recordings in progress."""
    return root / f"{family}{'-tied' if tied else ''}"
