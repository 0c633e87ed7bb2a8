"""Whose training step is simulated: peftbench's own, or that of another program, as a set of named parts.

Programs differ in what they keep and when: the dtype of what trains, how the loss takes the logits, whether gradients
outlive the step, how AdamW is written. Each part is simulated (program_step.py); none is a factor. The sources say what
each program does; a part that is given replaces the program's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from peftbench.errors import UserError, shown, unknown

DTYPES = ("float32", "bfloat16")
SHORT = {"fp32": "float32", "bf16": "bfloat16"}
VALID: dict[str, tuple[str, ...]] = {
    "weights": DTYPES,
    "trained": DTYPES,
    "adapters": ("fused", "plain"),
    "optimizer": ("adamw", "adamw8bit", "paged_adamw", "paged_adamw8bit", "sgd"),
    "update": ("fused", "foreach", "loop"),
    "gradients": ("freed", "until_forward", "kept", "in_backward"),
    "loss": ("whole", "chunked", "fused"),
    "outputs": ("freed", "until_update", "until_replaced"),
    "quantised_inputs": ("freed", "kept", "until_replaced"),
    "quantised_from": ("bfloat16", "float16"),
    "attention": ("flash", "efficient", "math", "eager"),
    "mask": ("padding", "always", "never"),
}
YES, NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
OWN = "peftbench"


@dataclass(frozen=True)
class Program:
    """The parts of a training step that decide its memory.

    Attributes:
        name: The program.
        weights: Dtype of weights that never train.
        trained: Dtype of what the method adds, of its gradients and of the optimiser's moments. Weights of the base
            that train keep theirs.
        autocast: Whether the forward pass computes in bfloat16 by autocast.
        adapters: "fused", as this suite's layers compute, or "plain": operation by operation, with the casts of peft.
        optimizer: AdamW, with moments in 8 bits, in paged memory outside the device ("paged_"), or SGD.
        update: AdamW's form: one kernel ("fused"), lists of tensors with a temporary of their size ("foreach"), or a
            loop over the parameters.
        gradients: "freed" after the update, freed before the next forward pass ("until_forward"), "kept" and filled
            again, or freed one by one where the update runs "in_backward".
        clip: Whether gradients are clipped to a norm.
        decay_apart: Whether vectors have a group of their own, without weight decay, which "foreach" updates apart.
        loss: "whole": the logits of all tokens, then a float32 copy; "chunked": head and cross-entropy by parts of the
            tokens; "fused": by parts that are not kept.
        chunk: Tokens of such a part in each text.
        exact_loss: Whether the cross-entropy is computed in float32, not in the dtype of the logits.
        float_outputs: Whether what the network returns is cast to float32 as a whole, as Accelerate and Fabric do.
        outputs: How long the logits live: until the loss is computed, until the update, or, with the loss, until the
            next step's.
        own_head: Whether the head has weights of its own where the model ties them to the embedding.
        quantised_head: Whether QLoRA's program quantises the head too.
        quantised_inputs: Whether a 4-bit layer keeps its input for backward, as bitsandbytes before 0.43.2 does. It
            keeps it on the graph's node, which backward does not empty: it lives until the next step's loss, if the
            program holds the loss until then ("until_replaced").
        quantised_from: Dtype that 4-bit weights had. If it is not that of the products, a dequantised weight exists in
            both for a moment.
        fused_qkv: Whether queries, keys and values come from one layer: what keeps one of them keeps them all.
        fused_gelu: Whether GELU by tanh is one kernel, where transformers computes it operation by operation.
        cache: Whether the forward pass fills a key-value cache, which lives as long as the logits.
        attention: Kernel: "flash" and "efficient" keep the output and a float32 per row, "math" the scores; "eager" is
            the network's own code.
        grouped: Whether the kernel takes fewer key and value heads than query heads, or they are repeated for it.
        checkpointing: Whether a block's activations are computed again in backward.
        input_gradients: Whether, with checkpointing, the embedded texts get a gradient too, as transformers arranges.
        offload_activations: Whether what backward needs waits in the host's memory.
        mask: Whether attention gets a mask: where texts differ in length ("padding"), "always" or "never". With one,
            key and value heads are repeated, and each layer keeps a copy of it in the dtype of the queries.
        given: Parts that the user gave. What a network does not take is refused where it is given, and left out else.
    """

    name: str
    weights: str = "bfloat16"
    trained: str = "float32"
    autocast: bool = False
    adapters: str = "plain"
    optimizer: str = "adamw"
    update: str = "foreach"
    gradients: str = "freed"
    clip: bool = True
    decay_apart: bool = False
    loss: str = "whole"
    chunk: int = 128
    exact_loss: bool = True
    float_outputs: bool = False
    outputs: str = "freed"
    own_head: bool = False
    quantised_head: bool = False
    quantised_inputs: str = "freed"
    quantised_from: str = "bfloat16"
    fused_qkv: bool = False
    fused_gelu: bool = False
    cache: bool = False
    attention: str = "flash"
    grouped: bool = True
    checkpointing: bool = False
    input_gradients: bool = True
    offload_activations: bool = False
    mask: str = "padding"
    given: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, valid in VALID.items():
            value = SHORT.get(getattr(self, name), getattr(self, name))
            object.__setattr__(self, name, value)
            if value not in valid:
                raise unknown(name, value, valid, where="--part")
        if self.clip and self.gradients == "in_backward":
            raise UserError(
                "--part gradients=in_backward: each gradient is freed before the norm of all is known; give --part "
                "clip=false as well"
            )
        if self.chunk < 1:
            raise UserError(f"--part chunk={self.chunk}: give a whole number of tokens from 1")

    @property
    def mixed(self) -> bool:
        """Whether weights of two dtypes meet without autocast, so that the adapters cast."""
        return not self.autocast and self.weights != self.trained

    def demands(self, part: str) -> bool:
        """Whether a part is given, or is not the program's own."""
        return part in self.given or getattr(self, part) != getattr(PROGRAMS[self.name][0], part)


PROGRAMS: dict[str, tuple[Program, str]] = {
    "plain": (
        Program("plain", gradients="freed", clip=False, outputs="until_update"),
        "a loop of one's own around a transformers model and peft: AdamW as torch makes it on a GPU",
    ),
    "hf-trainer": (
        Program("hf-trainer", autocast=True, update="fused", decay_apart=True, float_outputs=True),
        "transformers' Trainer with bf16: true and peft; weights in bfloat16; AdamW in one kernel from torch 2.8",
    ),
    "peft-comparison": (
        Program("peft-comparison", gradients="until_forward", outputs="until_replaced", cache=True),
        "the loop of peft's method comparison: bfloat16 without autocast, float32 adapters, logits and cache kept",
    ),
    "litgpt": (
        Program(
            "litgpt",
            trained="bfloat16",
            loss="chunked",
            float_outputs=True,
            gradients="kept",
            clip=False,
            outputs="until_replaced",
            own_head=True,
            quantised_head=True,
            quantised_from="float16",
            fused_qkv=True,
            fused_gelu=True,
            grouped=False,
            input_gradients=False,
            mask="never",
        ),
        "litgpt's finetune scripts with bf16-true: adapters and moments in bfloat16, the head by 128 tokens",
    ),
    "torchtune": (
        Program("torchtune", trained="bfloat16", clip=False, input_gradients=False),
        "torchtune's single-device recipes in bfloat16",
    ),
}


def names() -> tuple[str, ...]:
    """Return the programs that can be simulated; the first is this suite's own."""
    return (OWN, *PROGRAMS)


def program(name: str, parts: Mapping[str, Any] | None = None) -> Program | None:
    """Return the program called `name` with `parts` in place of its own; None for peftbench's own step.

    Args:
        name: One of `names`.
        parts: Values by attribute of `Program`, as text or as themselves.

    Raises:
        UserError: A name or a value is unknown, or parts are given for peftbench's own step.
    """
    if name not in names():
        raise unknown("program", name, names(), where="--program")
    if name == OWN:
        if parts:
            raise UserError(
                f"--part {next(iter(parts))} goes with a --program of {', '.join(PROGRAMS)}; peftbench's own step has "
                "--dtype, --optimizer, --checkpointing and --attention"
            )
        return None
    values = {key: _value(key, value) for key, value in (parts or {}).items()}
    return replace(PROGRAMS[name][0], given=tuple(values), **values)


def parsed_parts(texts: list[str]) -> dict[str, str]:
    """Return {"loss": "fused"} for ["loss=fused"].

    Raises:
        UserError: A text has no "=", or a part is given twice.
    """
    parts: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UserError(f"--part {shown(text)}: give NAME=VALUE, such as --part loss=fused")
        if name in parts:
            raise UserError(f"--part {name} is given twice, as {parts[name]} and as {value}; keep one of them")
        parts[name] = value
    return parts


def part_of(option: str) -> str:
    """Return the part that an option of `estimate` stands for: --dtype for `weights`, others for their own name."""
    return "weights" if option == "dtype" else option


def with_options(parts: Mapping[str, str], options: Mapping[str, str | None]) -> dict[str, str]:
    """Return parts with the options of `estimate` that stand for one.

    Args:
        parts: Values by part, as given.
        options: Values by the option's name; None is not given.

    Raises:
        UserError: An option's value is unknown, or contradicts its part.
    """
    together = dict(parts)
    for option, value in options.items():
        if value is None:
            continue
        part = part_of(option)
        valid = VALID.get(part)
        if valid is not None and SHORT.get(value, value) not in valid:
            raise unknown(option, value, (*valid, *(SHORT if option == "dtype" else ())), where=f"--{option}")
        if part in parts and _same(part, parts[part]) != _same(part, value):
            given = f"--{option}" if value == "true" else f"--{option} {value}"
            raise UserError(f"{given} and --part {part}={parts[part]} contradict each other; keep one of them")
        together[part] = value
    return together


def _same(part: str, value: str) -> Any:
    return SHORT.get(value, _value(part, value))


def listing() -> str:
    """Return the programs with what each is, and the parts with their values, for people."""
    rows = [(OWN, "this suite's own training step"), *((name, about) for name, (_, about) in PROGRAMS.items())]
    kinds = _kinds()
    free = {"bool": ("true", "false"), "int": ("a whole number",)}
    parts = [(name, ", ".join(VALID.get(name) or free[str(kind)])) for name, kind in kinds.items()]
    return "\n".join([*_columns("program", rows), "", *_columns("part", parts)])


def _columns(head: str, rows: list[tuple[str, str]]) -> list[str]:
    width = max(len(head), *(len(name) for name, _ in rows))
    return [f"{head:<{width}}  what it is" if head == "program" else f"{head:<{width}}  values"] + [
        f"{name:<{width}}  {about}" for name, about in rows
    ]


def as_text(own: Program) -> str:
    """Return the parts on one line, each as --part takes it."""
    return ", ".join(f"{key}={str(getattr(own, key)).lower()}" for key in _kinds())


def differing(own: Program, other: Program) -> dict[str, Any]:
    """Return the parts of another program that differ from a program's."""
    return {key: getattr(other, key) for key in _kinds() if getattr(other, key) != getattr(own, key)}


def _kinds() -> dict[str, Any]:
    """Return the type of each part by its name."""
    return {f.name: f.type for f in fields(Program) if f.name not in ("name", "given")}


def _value(key: str, value: Any) -> Any:
    kinds = _kinds()
    if key not in kinds:
        raise unknown("part", key, list(kinds), where="--part")
    if kinds[key] == "bool":
        text = str(value).lower()
        if text not in (*YES, *NO):
            raise UserError(f"--part {key}={value}: give true or false")
        return text in YES
    if kinds[key] == "int":
        try:
            return int(value)
        except ValueError as error:
            raise UserError(f"--part {key}={value}: give a whole number") from error
    return value
