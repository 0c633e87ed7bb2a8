"""YAML -> `Experiment`: the only place that knows the file format of an experiment.

Every mistake in a file is reported with the file, the place (`methods[2].lora.rank`), the line, what was given and what
is valid; all mistakes that can be told apart at once come in one `UserError`. What a method's hyperparameters are is
asked of the methods' facts (configurations.py), so that nothing here imports torch or a method.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, InstanceOf, PrivateAttr, ValidationError, field_validator, model_validator
from pydantic.json_schema import WithJsonSchema

from peftbench import findings, strict_yaml
from peftbench.errors import UserError, unknown
from peftbench.probes import CARDS
from peftbench.probes import known as known_probes
from peftbench.sections import EXEMPT, LENGTHS, Budget, Count, Length, Part, Positive, Task
from peftbench.strict_yaml import Document, Place
from peftbench.tasks import data, local

RESERVED = ("label", "lr", "first_seed", "search_space", "exempt")  # keys of a method's mapping, not hyperparameters


class Backbone(Part):
    """The base model: an embedded preset, a directory or a hub id."""

    model: str = Field(min_length=1, description="minilm-l6, smollm2-135m, a directory, or a hub id (roberta-base)")
    revision: str | None = Field(None, description="commit or tag on the hub")
    roles: dict[str, Any] | None = Field(None, description="where the roles are, for an architecture that is not known")


class Train(Part):
    """The schedule, equal for all methods; learning rates stand with the methods."""

    warmup: float = Field(0.06, ge=0, lt=1, description="share of the steps in which the rate rises from 0")
    decay: Literal["linear", "cosine", "constant"] = Field("linear", description="how the rate falls after the warm-up")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's, on matrices only")
    clip: Positive | None = Field(1.0, description="largest norm of the whole gradient; null: no clipping")
    head_lr: Positive | None = Field(None, description="the task head's rate for every method; null: the method's own")
    eval_every: Count | None = Field(None, description="steps between evaluations on validation; null: only at the end")
    patience: Count | None = Field(None, description="evaluations without improvement before a run stops early")
    checkpoint: Literal["last", "best"] = Field("last", description="the weights that are tested; best by validation")

    @model_validator(mode="after")
    def _evaluates_when_it_must(self) -> Train:
        for key, given in (("patience", self.patience is not None), ("checkpoint: best", self.checkpoint == "best")):
            if given and self.eval_every is None:
                raise ValueError(f"{key} needs evaluations to choose from; set eval_every, e.g. eval_every: 50")
        return self


class Latency(Part):
    """At which shapes inference is timed, with adapters and without."""

    batches: tuple[Count, ...] = Field((1, 8, 32), strict=False, min_length=1, description="examples in a batch")
    lengths: tuple[Length, ...] = Field((), strict=False, description="tokens, beside the task's median length")
    rounds: Count | None = Field(None, description="timed rounds; 20 and more have a p95; null: as for the steps")
    tokens: Count = Field(8, description="tokens written after each prompt, where the network generates")


class Profile(Part):
    """The pass that measures times, after the runs and with none beside it."""

    processes: Count = Field(5, description="that take it one after another; the ratios' intervals are over them")
    rounds: Count = Field(5, description="timed rounds through all methods, in each process")
    warmup: int = Field(2, ge=0, description="rounds before them that are not timed, in each process")
    latency: Latency = Latency()


@dataclass(frozen=True)
class MethodEntry:
    """One item of `methods:` as written: lists in `lr` and `hyper` are grids, not yet expanded."""

    name: str
    place: Place
    label: Any = None
    lr: Any = None
    first_seed: Any = 0  # its repetitions have this seed and the following ones
    hyper: Mapping[str, Any] = field(default_factory=dict)
    search_space: Any = None  # in place of the method's own
    exempt: Any = None


class Experiment(Part):
    """A whole file, checked."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$", description="names the results directory")
    description: str = Field("", description="one line for people")
    backbone: Backbone
    tasks: tuple[Task, ...] = Field(min_length=1)
    budget: Budget = Budget()
    train: Train = Train()
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, cuda, cuda:N or mps")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of the weights that do not train")
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass: less memory")
    compile: bool = Field(False, description="compile the training step with torch.compile")
    backbone_dropout: float | None = Field(None, ge=0, lt=1, description="replaces the base model's own; null: its own")
    probes: Annotated[
        tuple[str, ...], WithJsonSchema({"type": "array", "items": {"enum": sorted(CARDS)}, "uniqueItems": True})
    ] = Field((), strict=False, description="what each run measures of the trained network itself, beside its scores")
    save_adapters: bool = Field(False, description="keep each run's trained adapter under the results directory")
    jobs: Count = Field(1, description="worker processes; several share the machine")
    reference: str = Field("full", description="the label that ratios are taken to")
    profile: Profile | None = Field(Profile(), description="false: measure no times")
    methods: Annotated[
        tuple[InstanceOf[MethodEntry], ...], Field(min_length=1), WithJsonSchema({"type": "array", "minItems": 1})
    ]
    _document: Document = PrivateAttr()

    @field_validator("probes")
    @classmethod
    def _probes_are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return known_probes(names)
        except UserError as error:
            raise ValueError(str(error)) from error

    @property
    def file(self) -> Path:
        return self._document.path

    def where(self, place: Place) -> str:
        """A place in this experiment's file, to begin a message with."""
        return self._document.where(place)

    def profile_of(self, rounds: int | None = None, processes: int | None = None) -> Profile:
        """The profile pass as the file has it, or the defaults; what is given stands in place of its own.

        Given `rounds`, latencies are timed in as many.
        """
        asked = self.profile or Profile()
        if processes is not None:
            asked = asked.model_copy(update={"processes": processes})
        if rounds is None:
            return asked
        return asked.model_copy(update={"rounds": rounds, "latency": asked.latency.model_copy(update={"rounds": None})})

    def error(self, place: Place, said: str) -> UserError:
        """A mistake at a place in this experiment's file."""
        return self._document.error(place, said)


WANTED = {
    "name": "a name of letters, digits, dots, dashes and underscores, such as glue_small",
    "device": "auto, cpu, cuda, cuda:N or mps",
    "model": "a preset, a directory or a hub id, e.g. model: minilm-l6",
    "task": "a name that `peftbench tasks` lists, e.g. task: glue/rte",
    "backbone": "the base model, e.g. backbone: minilm-l6",
    "tasks": "a list of tasks, e.g. tasks: [embedded/question_type]",
    "methods": "a list of methods, e.g. methods: [full, lora]",
}
SECTIONS: dict[Place, type[Part]] = {
    ("backbone",): Backbone,
    ("budget",): Budget,
    ("train",): Train,
    ("profile",): Profile,
    ("profile", "latency"): Latency,
}


def load(source: str | Path, added: Sequence[str] = ()) -> Experiment:
    """The experiment in the file `source`, or the packaged one of that name (`quickstart`).

    `added`: further items of its `methods`, written as there: `mine`, `mine: {lr: 1e-3}`.
    """
    document = strict_yaml.load(find(source))
    if not isinstance(document.value, dict):
        what = "is empty" if document.value is None else f"holds a {type(document.value).__name__}"
        raise UserError(f"{document.path}: {what}; an experiment is a mapping with name, backbone, tasks, methods, ...")
    mistakes: list[UserError] = []
    plain = _normalised(document, mistakes)
    _add(document, plain, added, mistakes)
    try:
        experiment = Experiment.model_validate(plain) if not mistakes else None
    except ValidationError as e:
        mistakes += [_explained(document, error) for error in e.errors() if not _is_echo(error)]
    mistakes += _misspelt(document, plain)
    if mistakes or experiment is None:
        raise UserError("\n".join(dict.fromkeys(map(str, mistakes))))
    experiment._document = document
    if crossed := list(_crossed(experiment)):
        raise UserError("\n".join(map(str, crossed)))
    return experiment


def _crossed(experiment: Experiment) -> Iterator[UserError]:
    """Mistakes between sections, each where it can be mended."""
    b = experiment.budget
    for i, task in enumerate(experiment.tasks):
        for name in LENGTHS:
            if name != b.length and getattr(task, name) is not None:
                said = f"the budget counts {b.length}, and so must every task: write {b.length}: ... here"
                yield experiment.error(("tasks", i, name), said)
        yield from exemptions(experiment, task.exempt, ("tasks", i, "exempt"))
    if b.seconds is not None and experiment.jobs > 1:
        said = "runs that share the machine would get less done in the seconds of the budget; write jobs: 1"
        yield experiment.error(("jobs",), said)


def exemptions(experiment: Experiment, exempt: Mapping[str, str], place: Place) -> Iterator[UserError]:
    """A mistake for every exemption from what is no budget, or none that the experiment has."""
    for axis in exempt:
        if axis not in EXEMPT:
            yield unknown("budget", axis, EXEMPT, where=experiment.where((*place, axis)))
        elif getattr(experiment.budget, axis) is None:
            yield experiment.error((*place, axis), f"there is no budget of {axis} to be exempt from; remove it")


def find(source: str | Path) -> Path:
    """The path of an experiment file given as a path or as the bare name of a packaged one."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError(f"{path} is a directory; give the YAML file of an experiment")
    known = packaged()
    if str(source) in known:
        return known[str(source)]
    beside = [str(p) for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    near = get_close_matches(str(source), [*beside, *known], n=1)
    hint = f"; did you mean {near[0]}?" if near else "."
    raise UserError(f"no experiment file {source}{hint} Packaged experiments: {', '.join(known) or 'none'}")


def packaged() -> dict[str, Path]:
    """The experiments that come with peftbench, by name: `quickstart`, `paper/lora_rank`."""
    from importlib.resources import files

    folder = Path(str(files("peftbench.experiments")))
    found = [*sorted(folder.glob("*.yaml")), *sorted(folder.glob("paper/*.yaml"))]
    return {p.relative_to(folder).with_suffix("").as_posix(): p for p in found}


def _normalised(document: Document, mistakes: list[UserError]) -> dict[str, Any]:
    """The long form of the file: shorthands written out, so that each place has one type."""
    plain = dict(document.value)
    if isinstance(plain.get("backbone"), str):
        plain["backbone"] = {"model": plain["backbone"]}
    if isinstance(plain.get("tasks"), list):
        plain["tasks"] = tuple({"task": t} if isinstance(t, str) else t for t in plain["tasks"])
    if isinstance(plain.get("profile"), bool):
        plain["profile"] = {} if plain["profile"] else None
    elif "profile" in plain and plain["profile"] is None:
        mistakes.append(
            document.error(("profile",), "given nothing; valid: false, or a mapping with processes, rounds and warmup")
        )
    if isinstance(plain.get("methods"), list):
        entries = []
        for i, item in enumerate(plain["methods"]):
            try:
                entries.append(_entry(document, item, ("methods", i)))
            except UserError as mistake:
                mistakes.append(mistake)
        plain["methods"] = tuple(entries)
    return plain


def _add(document: Document, plain: dict[str, Any], added: Sequence[str], mistakes: list[UserError]) -> None:
    """Methods of the command line behind those of the file."""
    for text in added:
        place = (f"--method {text!r}",)
        document.lines[place] = 0  # of no line
        try:
            entry = _entry(document, strict_yaml.scalar(text), place)
        except UserError as mistake:
            mistakes.append(mistake)
            continue
        if isinstance(plain.get("methods", ()), tuple):
            plain["methods"] = (*plain.get("methods", ()), entry)


def _entry(document: Document, item: Any, place: Place) -> MethodEntry:
    """`lora` or `{lora: {rank: 4, label: small, lr: 1e-3}}`."""
    if isinstance(item, str):
        return MethodEntry(item, place)
    if not isinstance(item, dict) or len(item) != 1:
        raise document.error(place, f"given {item!r}; a method is a name, or {{name: {{hyperparameter: value}}}}")
    ((name, inner),) = item.items()
    if inner is None:
        inner = {}
    if not isinstance(inner, dict):
        raise document.error((*place, name), f"given {inner!r}; valid: a mapping such as {{rank: 4, lr: 1e-3}}")
    hyper = {k: v for k, v in inner.items() if k not in RESERVED}
    label, lr, first, space, exempt = (inner.get(key) for key in RESERVED)
    return MethodEntry(name, (*place, name), label, lr, 0 if first is None else first, hyper, space, exempt)


def _is_echo(error: Any) -> bool:
    """A list whose every item is wrong is reported as empty, too."""
    return error["type"] == "too_short" and bool(error["input"])


def _explained(document: Document, error: Any) -> UserError:
    """pydantic's finding in the words of the file."""
    place: Place = tuple(error["loc"])
    if error["type"] == "missing":
        return document.error(place[:-1], f"{place[-1]} is missing; it must be {WANTED[str(place[-1])]}")
    if error["type"] == "extra_forbidden":
        return unknown("key", place[-1], _keys(place[:-1]), where=document.where(place))
    message = findings.said(error)
    if error["type"] == "value_error":
        return document.error(place, message)
    if error["type"] == "string_pattern_mismatch":
        message = f"must be {WANTED[str(place[-1])]}"
    if error["type"] in ("model_type", "dict_type", "model_attributes_type"):
        message = "must be a mapping" + (f" with the keys {', '.join(_keys(place))}" if _keys(place) else "")
    return document.error(place, f"given {error['input']!r}; {message}")


def _misspelt(document: Document, plain: Mapping[str, Any]) -> list[UserError]:
    """Keys of tasks that are no option of any task, but nearly a key; what remains, the tasks themselves check."""
    keys = [*Task.model_fields, *data.LIMITS]
    found = []
    for i, task in enumerate(plain["tasks"] if isinstance(plain.get("tasks"), tuple) else ()):
        for key in task if isinstance(task, dict) else ():
            if key not in (*keys, *local.OPTIONS) and get_close_matches(key, keys, n=1, cutoff=0.7):
                valid = [*keys, *(local.OPTIONS if task.get("task") == "local" else ())]
                found.append(unknown("key", key, valid, where=document.where(("tasks", i, key))))
    return found


def _keys(place: Place) -> list[str]:
    """The keys that are valid inside the mapping at `place`."""
    if not place:
        return list(Experiment.model_fields)
    if place[0] == "tasks":
        return list(Task.model_fields)
    part = SECTIONS.get(place)
    return list(part.model_fields) if part else []
