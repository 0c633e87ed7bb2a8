"""Plan an experiment: all its runs, before anything is trained."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbench.api.paths import PathLike, path
from peftbench.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from peftbench.plan.baselines import Baselines
    from peftbench.plan.experiment import Experiment
    from peftbench.plan.prepare import Prepared
    from peftbench.records.data_summary import DataSummary
    from peftbench.records.record import Record
    from peftbench.records.retries import TimeLimits
    from peftbench.records.spec import RunSpec, Spec
    from peftbench.run.executors import Workers


@dataclass(frozen=True)
class Plan:
    """An experiment with all its runs. Sizes are solved, and data and model are available; nothing is trained yet.

    Attributes:
        prepared: the experiment, its facts and its runs, as the planner made them.
        baselines: the records to compare the runs with, if `against` was given.
        data_dir: the folder with data sets.
        notes: what a reader should know before running.
    """

    prepared: Prepared = field(repr=False)
    baselines: Baselines | None = field(default=None, repr=False)
    data_dir: Path | None = None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Plan({self.experiment.name!r}, {len(self.runs)} runs)"

    def __len__(self) -> int:
        return len(self.runs)

    @property
    def experiment(self) -> Experiment:
        """The experiment as it was read, defaults included."""
        return self.prepared.experiment

    @property
    def runs(self) -> tuple[RunSpec, ...]:
        """The specifications of the runs in the order in which they run, tuning trials first.

        Where seeds run until decided, these are the runs at the most; which of them are wanted, the records decide.
        """
        return tuple(p.spec for p in self.prepared.planned)

    def frame(self) -> pd.DataFrame:
        """Return the grid as a pandas data frame, with one row for each of `runs`.

        Returns:
            Columns: `task`, `train_size` (if it is an axis), `method` (the label), `seed`, `trial` (None for a final
            run), `steps`, `lr` (None until trials have chosen it), `trainable` (parameters without the head), `size`
            ("matched", "nearest", "native", "explicit" or "exempt"), `deviation` (a fraction of the budget),
            `spec_id`.
        """
        import pandas as pd

        rows = [
            {
                "task": p.spec.task.name,
                **({"train_size": p.task.point["train_size"]} if "train_size" in p.task.point else {}),
                "method": p.label,
                "seed": p.spec.seed,
                "trial": p.spec.trial,
                "steps": p.spec.train.steps,
                "lr": None if p.waits else p.spec.train.lr,
                "trainable": p.trainable,
                "size": p.spec.method.size,
                "deviation": p.spec.method.deviation,
                "spec_id": p.spec.id,
            }
            for p in self.prepared.planned
        ]
        return pd.DataFrame(rows)

    def data_summaries(self) -> dict[str, tuple[DataSummary, int]]:
        """Return what is done to each task's data before training. The tokenizer encodes the texts, once.

        Returns:
            task -> rows, classes, copies and what truncation takes, and the number of tokens at which texts are cut.
            On an axis of training sizes, the size follows the task's name: "glue/rte, train_size 100".

        Raises:
            UserError: the tokenizer does not load, or the data changed since the plan was made.
        """
        from peftbench.estimate.run import text_lengths

        stores = self.prepared.catalogue.stores
        specs = {p.task.title: p.spec for p in reversed(self.prepared.planned)}
        made = {
            name: (text_lengths.data_summary(stores, s.backbone, s.task, s.train.max_length, self.data_dir), s)
            for name, s in reversed(specs.items())
        }
        stores.save()
        return {name: (summary, s.train.max_length) for name, (summary, s) in made.items()}

    @property
    def design(self) -> Mapping[str, Any] | None:
        """What the experiment asks of its comparison, as records keep it; None if nothing beyond a table."""
        from msgspec import to_builtins

        from peftbench.plan import design

        found = design.of(self.experiment, () if self.baselines is None else self.baselines.labels)
        return None if found is None else dict(to_builtins(found))

    def results_dir(self, given: PathLike | None = None) -> Path:
        """Return the directory for the records: `given`, or results/NAME by default.

        Raises:
            UserError: it is the directory of the baselines.
        """
        chosen = path(given)
        if self.baselines is not None:
            return self.baselines.results_dir(chosen, self.experiment.name)
        return self.prepared.results_dir(chosen)

    def planner(
        self, before: Sequence[Record], retry_failed: bool = False, limits: TimeLimits | None = None
    ) -> Callable[[list[Record]], list[Spec]]:
        """Return the function from the records so far to the specifications to run, for `run.runner.run`."""
        planner = self.prepared.planner(before, retry_failed, limits or self.experiment.timeout.limits())
        return planner if self.baselines is None else self.baselines.planner(planner)

    def download_weights(self) -> None:
        """Download the weights of a model on the hub, if they are not there yet; other models need none.

        Runs then begin only if the hub delivers, and whoever started them sees the progress.

        Raises:
            UserError: the hub refuses or does not deliver them.
        """
        from peftbench.backbones import source

        backbone = self.prepared.facts.backbone
        source.download_weights(source.origin(backbone.model, backbone.pinned_revision))

    def check_device(self, device: str | None = None, must_exist: bool = True) -> None:
        """Raise `UserError` if this machine lacks the device, or if the device does not compute in the plan's dtype.

        Args:
            device: the device in place of the file's.
            must_exist: False passes a device that is not here: the plan may be for another machine.
        """
        name, dtype = device or self.experiment.device, self.experiment.dtype
        if name == "cpu" or (name == "auto" and dtype == "float32"):
            return
        from peftbench.backbones import devices  # imports torch, which takes seconds

        try:
            chosen = devices.pick(name)
        except UserError:
            if must_exist:
                raise
            return
        devices.check_dtype(chosen, dtype)

    def workers(
        self,
        device: str | None = None,
        jobs: int | None = None,
        executor: str = "local",
        options: Mapping[str, str] | None = None,
    ) -> Workers:
        """Return how many runs go side by side: a number that is given, or what suits the executor and this machine.

        Args:
            device: the device in place of the file's.
            jobs: the number in place of the file's.
            executor: the executor of the runs.
            options: the executor's own options.

        Raises:
            UserError: so many do not run side by side here, or the budget counts seconds.
        """
        from peftbench.run import executors

        e = self.experiment
        if jobs is not None:
            self.prepared.check_jobs(jobs)
        elif e.budget.seconds is not None:  # runs that share the machine would get less done
            jobs = 1
        each = e.parallel.ranks if e.parallel else 1
        return executors.workers(executor, device or e.device, options or {}, jobs, e.jobs, each)

    def session(self, device: str | None = None, results: Path | None = None) -> dict[str, Any]:
        """Return the arguments of each worker's session.

        With `save_adapters` in the experiment, the workers keep trained adapters under `results`, and with
        `checkpoint_every` unfinished runs.
        """
        from peftbench.records.record import CHECKPOINTS

        keep, every = results is not None and self.experiment.save_adapters, self.experiment.checkpoint_every
        saved = {"folder": str(Path(str(results)) / CHECKPOINTS), "every": every}
        return {
            "device": device or self.experiment.device,
            "data_dir": None if self.data_dir is None else str(self.data_dir),
            "plugins": [str(p) for p in self.prepared.catalogue.plugins],
            "adapters": str(Path(str(results)) / "adapters") if keep else None,
            **({"deterministic": True} if self.experiment.deterministic else {}),
            **({"checkpoints": saved} if results is not None and every is not None else {}),
        }


def plan(
    experiment: PathLike | Mapping[str, Any] | Experiment,
    *,
    only: Sequence[str] = (),
    methods: Sequence[str] = (),
    overrides: Sequence[str] = (),
    data_dir: PathLike | None = None,
    plugins: Sequence[PathLike] = (),
    against: PathLike | None = None,
    model: Any = None,
    tokenizer: Any = None,
) -> Plan:
    """Read, check and plan an experiment. It trains nothing and loads no network.

    Args:
        experiment: the path of a YAML file, the name of a packaged experiment ("quickstart"), the mapping that such a
            file holds, or an experiment that was read before.
        only: parts of the grid: "method=lora", "task=glue/rte", "seed=0".
        methods: further methods, written as in the file: "lora: {rank: 2}".
        overrides: values in place of the file's: "budget.steps=10", "methods.lora.rank=4".
        data_dir: the folder with data sets such as GLUE's official files.
        plugins: files with methods of your own.
        against: a results directory with baselines. Only the new methods are planned, with the batches, seeds and
            budget of the baselines.
        model: a transformers network in memory, in place of the file's backbone. The cache keeps its weights, because
            each run has a process of its own.
        tokenizer: the tokenizer of `model`.

    Raises:
        UserError: the experiment or another argument is not valid. The message lists all mistakes with their fixes.
    """
    from peftbench.estimate.run.forecast import measures
    from peftbench.plan import baselines, prepare, read

    _check_lists(only=only, methods=methods, overrides=overrides, plugins=plugins)
    given = path(data_dir)
    files = [Path(p) for p in plugins]
    if model is not None:
        from peftbench.backbones.in_memory import saved

        overrides = [*overrides, f"backbone.model={saved(model, tokenizer)}", "backbone.revision=null"]
    elif tokenizer is not None:
        raise UserError("a tokenizer was given without its model; give model=... too")
    source = Path(experiment) if isinstance(experiment, os.PathLike) else experiment
    loaded = read.load(source, methods, overrides)
    if against is None:
        return Plan(prepare.prepare(loaded, only, given, files, measures(given)), data_dir=given)
    prepared, chosen = baselines.prepared(loaded, only, given, files, Path(against), measures(given))
    return Plan(prepared, chosen, given, tuple(chosen.remarks))


def _check_lists(**given: object) -> None:
    """Raise UserError for a text in place of a list of texts."""
    for name, value in given.items():
        if isinstance(value, str):
            raise UserError(f"{name}: given the text {value!r}; give a list: {name}=[{value!r}]")
