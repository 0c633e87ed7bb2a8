"""peftbench from Python: plan an experiment, run it, report it. The command line goes through these functions.

    import peftbench

    plan = peftbench.plan("quickstart", only=["method=lora", "method=full"])
    records = peftbench.run(plan, "results/mine")
    report = peftbench.report(records)
    print(report.table())
    report.frame()                      # pandas: a row a configuration and task

Nothing heavy is imported before a function needs it: torch by `run` in its worker processes and by `attach`, pandas by
`frame`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from peftbench.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from peftbench.plan.baselines import Baselines
    from peftbench.plan.experiment import Experiment
    from peftbench.plan.prepare import Prepared
    from peftbench.records.data_summary import DataSummary
    from peftbench.records.record import Record, TrainingRecord
    from peftbench.records.retries import TimeLimits
    from peftbench.records.spec import RunSpec, Spec
    from peftbench.report.assemble import ReportData
    from peftbench.report.data.answer import Answer
    from peftbench.report.tables.explained import Cell
    from peftbench.run.attached import Attached
    from peftbench.run.executors import Workers
    from peftbench.run.runner import Outcome
    from peftbench.run.view import View

PathLike = str | os.PathLike[str]


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
        chosen = _path(given)
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


class Records(Sequence["Record"]):
    """The records of one results directory, in the order of their file names.

    Attributes:
        folder: the results directory.
        baselines: the directory of the records that a report compares these with; None for none.
        outcome: how the `run` that made the records ended; None if they were read.
    """

    def __init__(self, folder: PathLike, baselines: PathLike | None = None, outcome: Outcome | None = None) -> None:
        self.folder = Path(folder)
        self.baselines = None if baselines is None else Path(baselines)
        self.outcome = outcome

    def __repr__(self) -> str:
        return f"Records({str(self.folder)!r}, {len(self)} records)"

    @cached_property
    def _records(self) -> list[Record]:
        from peftbench.records import record

        return record.readable(self.folder)

    @overload
    def __getitem__(self, i: int) -> Record: ...

    @overload
    def __getitem__(self, i: slice) -> Sequence[Record]: ...

    def __getitem__(self, i: int | slice) -> Record | Sequence[Record]:
        return self._records[i]

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    def frame(self) -> pd.DataFrame:
        """Return a data frame with one row for each training run, failed attempts included, without profile passes.

        Returns:
            Columns: `experiment`, `task`, `method` (the label), `method_name`, `seed`, `trial`, `status`, `lr`,
            `trainable`, `peak_bytes`, `seconds` (of the whole run), `spec_id`, `path`, and `test_METRIC` and
            `validation_METRIC` for each metric. A value that was not measured is missing.
        """
        import pandas as pd

        from peftbench.records.record import TrainingRecord

        rows = [_row(r) for r in self if isinstance(r, TrainingRecord)]
        return pd.DataFrame(rows, columns=None if rows else COLUMNS)


COLUMNS = (  # of every row of `Records.frame`; scores follow them
    *("experiment", "task", "method", "method_name", "seed", "trial", "status", "lr"),
    *("trainable", "peak_bytes", "seconds", "spec_id", "path"),
)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, or a signal that ends a program, has stopped `run` before its last run.

    Attributes:
        records: all records of the directory so far.
    """

    def __init__(self, records: Records) -> None:
        super().__init__(f"stopped before all runs of {records.folder} had ended; the same call resumes")
        self.records = records


def _row(r: TrainingRecord) -> dict[str, Any]:
    sizes, memory, scores = r.body.parameters, r.body.memory, r.body.metrics
    splits = {s: getattr(scores, s, {}) for s in ("test", "validation")}
    asked = (r.experiment, r.spec.task.name, r.spec.method.label, r.spec.method.name, r.spec.seed, r.spec.trial)
    costs = (sizes.trainable if sizes else None, memory.peak_bytes if memory else None, r.body.seconds.total)
    values = (*asked, r.status, r.spec.train.lr, *costs, r.spec_id, str(r.path))
    measured = {f"{split}_{name}": value for split, of in splits.items() for name, value in of.items()}
    return {**dict(zip(COLUMNS, values, strict=True)), **measured}


class Report:
    """The comparison of the runs in a results directory: a table for each task, and conclusions.

    Attributes:
        folder: the results directory.
        loaded: the comparisons, passes and trials that tables and figures show.
    """

    def __init__(self, folder: PathLike, baselines: PathLike | None = None) -> None:
        from peftbench.report import assemble

        self.folder = Path(folder)
        self.loaded: ReportData = (
            assemble.load(self.folder) if baselines is None else assemble.load_against(self.folder, Path(baselines))
        )

    def __repr__(self) -> str:
        return f"Report({str(self.folder)!r}, {len(self.loaded.comparisons)} tables)"

    @property
    def place(self) -> Path:
        """The folder that `write` uses by default."""
        from peftbench.report import assemble

        return self.folder / assemble.FOLDER

    def _repr_html_(self) -> str:
        import pandas as pd

        from peftbench.report.media import plain

        with pd.option_context("display.html.use_mathjax", False):  # a dollar in a label starts no formula
            lines = str(self.frame().to_html()).split("\n")
        return "\n".join(map(plain.visible, lines))  # a control character of a label turns no text around

    def rows(self) -> list[dict[str, Any]]:
        """Return a JSON-ready mapping for each configuration and task, failed ones included.

        Times are in seconds and sizes in bytes, unrounded.
        """
        from peftbench.report import assemble

        return assemble.rows(self.folder, self.loaded)

    def verdict(self) -> list[Answer]:
        """Return what each table recommends: the cheapest method that is surely within the margin of the best.

        Returns:
            One `peftbench.report.data.answer.Answer` for each table that allows one, in the order of the tables; with
            what is behind, what is open and what would decide it.
        """
        from peftbench.report.data import answer

        return [found for c in self.loaded.comparisons if (found := answer.of(c))]

    def frame(self) -> pd.DataFrame:
        """Return `rows` as a pandas data frame, with one row for each configuration and task.

        Returns:
            Among the columns are `task`, `method` (the label), `mean` and `sd` of the primary `metric` on the test
            split over `n` seeds, `relative` (to the reference's mean), `trainable`, `peak_memory_bytes`,
            `step_seconds` and `step_ratio`; `peftbench.report.tables.export` documents all.
        """
        import pandas as pd

        return pd.DataFrame(self.rows())

    def cells(self) -> list[Cell]:
        """Return the cells of the tables, each with its text and the records and computation behind its number.

        Raises:
            UserError: there are no runs.
        """
        from peftbench.report import assemble

        return assemble.cells(self.folder, self.loaded)

    def table(self, columns: Sequence[str] = ()) -> str:
        """Return the tables and notes that `peftbench run` prints, for a terminal of 120 columns.

        Args:
            columns: as for `write`; by default all that there is room for.
        """
        from peftbench.report import assemble

        return assemble.text_table(self.folder, self.loaded, columns)

    def write(self, out: PathLike | None = None, columns: Sequence[str] = (), pdf: bool = False) -> Path:
        """Write all tables and figures to `out`, by default the folder `report` of the results directory.

        Args:
            out: the folder.
            columns: columns of the tables of scores, by name, such as `["score", "trainable", "memory"]`, for every
                kind of table; `["all"]` for all, in LaTeX as well, which has four without. CSV files always have all.
            pdf: whether to write the figures as PDF files, too.

        Returns:
            The path of `report.md`, which shows all of them.

        Raises:
            UserError: there are no runs, a column is unknown, or the directory cannot be written to.
        """
        from peftbench.report import assemble

        return assemble.write(self.folder, _path(out), self.loaded, columns, pdf)[0]

    def refresh(self) -> Path:
        """Write the report under the results directory, unless it is up to date.

        Returns:
            The path of `report.md`.
        """
        from peftbench.report import assemble

        return assemble.refresh(self.folder, self.loaded)

    def check(self, out: PathLike | None = None, columns: Sequence[str] = (), pdf: bool = False) -> list[str]:
        """Compare the written report with what the records give.

        Args:
            out: as for `write`, like the others.
            columns: the columns that it was written with.
            pdf: whether it was written with PDF files.

        Returns:
            One line for each file that differs in any byte; an empty list if the report is up to date.
        """
        from peftbench.report import assemble

        return assemble.check(self.folder, _path(out), self.loaded, columns, pdf)


def _path(given: PathLike | None) -> Path | None:
    return None if given is None else Path(given)


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
    given = _path(data_dir)
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


def run(
    plan: Plan | PathLike | Mapping[str, Any],
    results: PathLike | None = None,
    *,
    device: str | None = None,
    jobs: int | None = None,
    retry_failed: bool = False,
    threads: int | None = None,
    timeout: float | None = None,
    executor: str = "local",
    executor_options: Mapping[str, str] | None = None,
    progress: bool | View = False,
) -> Records:
    """Run the missing runs of a plan in worker processes. A run with a finished record does not run again.

    Args:
        plan: a `Plan`, or an experiment as `plan` takes it.
        results: the directory for records; results/NAME by default. The same directory resumes.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps", in place of the file's.
        jobs: worker processes, in place of the file's; by default one, or one for each GPU. Runs of several share the
            machine and record no times; the profile pass, which runs alone, does.
        retry_failed: also repeat runs that diverged, ran out of memory, raised an error or timed out, and those that
            were killed or interrupted too often.
        timeout: seconds after which a run is ended, in place of the file's; it is then recorded as a timeout.
        threads: CPU threads of a single worker and of the profile pass; all cores by default.
        executor: the executor of the runs: "local" for worker processes on this machine, or the name of one that an
            installed package adds. The records are the same.
        executor_options: the executor's own options, by name: {"partition": "gpu"} for "slurm".
        progress: True prints a line for each run, False prints only errors, on standard error; or a `View`.

    Returns:
        All records of the directory. Their `outcome` says how many runs finished or failed.

    Raises:
        Interrupted: Ctrl-C or a signal stopped it; the same call resumes.
        UserError: the directory is in use or cannot be written, the executor is unknown, or data or model changed since
            the plan was made.
        peftbench.run.executors.ExecutorError: the executor cannot run here.
    """
    from peftbench.records import record
    from peftbench.run import executors, runner
    from peftbench.run.view import Lines, Quiet

    options = dict(executor_options or {})
    executors.check_options(executor, options)
    planned = plan if isinstance(plan, Plan) else _plan(plan)
    planned.check_device(device, must_exist=executor == "local")
    folder, workers = planned.results_dir(results), planned.workers(device, jobs, executor, options).jobs
    if timeout is not None and not 0 < timeout < math.inf:
        raise UserError(f"timeout: given {timeout!r}; must be a positive number of seconds")
    limits = planned.experiment.timeout.limits(timeout)
    before = record.readable(folder)
    finished, planner = record.finished(before), planned.planner(before, retry_failed, limits)
    if executors.shares_files(executor) and any(spec.id not in finished for spec in planner(before)):
        planned.download_weights()
    view = (Lines() if progress else Quiet()) if isinstance(progress, bool) else progress
    outcome = runner.run(
        planner,
        folder,
        experiment=planned.experiment.name,
        overrides=planned.experiment.overrides,
        reference=planned.experiment.reference,
        design=planned.design,
        expected=planned.prepared.expected,
        session_kwargs=planned.session(device, folder),
        jobs=workers,
        threads=threads if workers == 1 else None,
        profile_threads=threads,
        executor=executor,
        options=options,
        devices=planned.experiment.parallel.ranks if planned.experiment.parallel else 1,
        peaks=_peaks(planned, device, workers, threads, before) if executors.needs_peaks(executor, options) else None,
        retry_failed=retry_failed,
        limits=limits,
        view=view,
    )
    made = Records(folder, None if planned.baselines is None else planned.baselines.folder, outcome)
    if outcome.code == runner.INTERRUPTED:
        raise Interrupted(made)
    return made


def _peaks(plan: Plan, device: str | None, jobs: int, threads: int | None, before: list[Record]) -> dict[str, int]:
    """The predicted memory peak of the plan's runs in bytes by spec id, simulated where it is not known yet."""
    from peftbench.estimate.run import forecast
    from peftbench.estimate.run.calibrate import Place
    from peftbench.run import executors

    place = Place(device or plan.experiment.device, jobs, threads or max(1, executors.cores() // jobs), plan.data_dir)
    peaks = forecast.peaks(plan.prepared.with_best_trials(before), before, place)
    return {key: peak.bytes for key, peak in peaks.items() if peak.bytes is not None}


def _check_lists(**given: object) -> None:
    """Raise UserError for a text in place of a list of texts."""
    for name, value in given.items():
        if isinstance(value, str):
            raise UserError(f"{name}: given the text {value!r}; give a list: {name}=[{value!r}]")


_plan = plan  # `run` has a parameter of that name


def records(folder: PathLike) -> Records:
    """Return the records under a results directory. They are read at their first use; a missing directory has none.

    A file that is damaged, edited or foreign, or that contradicts itself, is set aside: a warning of the class
    `peftbench.errors.SetAside` names it.
    """
    return Records(folder)


def report(records: Records | PathLike, *, against: PathLike | None = None) -> Report:
    """Compare finished runs: tables, figures and conclusions from records alone.

    Args:
        records: the result of `run` or `records`, or a results directory.
        against: a results directory with baselines for the same tables; by default that of the plan.

    Raises:
        UserError: there is no directory `against`. Files that are no records are set aside, as `records` says.
    """
    if against is not None and not Path(against).is_dir():
        raise UserError(f"against: no directory {against}; give a results directory")
    if isinstance(records, Records):
        return Report(records.folder, against or records.baselines)
    return Report(records, against)


def attach(
    method: str,
    model: Any,
    tokenizer: Any = None,
    *,
    roles: Mapping[str, Any] | str | None = None,
    plugins: Sequence[PathLike] = (),
    seed: int = 0,
    **hyper: Any,
) -> Attached:
    """Attach a method to a transformers network in memory, in place.

    >>> adapter = peftbench.attach("lora", model, tokenizer, rank=8)    # the network has its adapters now
    >>> adapter.train(texts, labels, steps=60)
    >>> adapter.merge()                                                 # folded into plain layers; unmerge() is exact
    >>> adapter.undo()                                                  # the network as it was, bit for bit

    Args:
        method: the name of a method, as `peftbench methods` lists it.
        model: a sequence classifier, causal or encoder-decoder model of transformers.
        tokenizer: the tokenizer of `model`; needed to train on texts.
        roles: module paths by role, for an unknown architecture, as `backbone.roles` in a file; or, as a text such as
            "q k v", the method's hyperparameter of that name.
        plugins: files with methods of your own.
        seed: the seed of the adapter's initial values.
        hyper: the method's hyperparameters: `rank=8`, `alpha=16.0`.

    Raises:
        UserError: an unknown method or hyperparameter, or a network that the method does not fit.
    """
    from peftbench.run.attached import Attached

    if isinstance(roles, str):  # "q k v": the linear layers that the method changes
        roles, hyper = None, {**hyper, "roles": roles}
    return Attached.to(method, model, tokenizer, hyper, roles=roles, plugins=[Path(p) for p in plugins], seed=seed)
