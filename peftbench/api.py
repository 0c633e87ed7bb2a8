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
    from peftbench.records.record import Record
    from peftbench.records.spec import RunSpec, Spec
    from peftbench.report.assemble import Loaded
    from peftbench.run.attached import Attached
    from peftbench.run.runner import Outcome
    from peftbench.run.view import View

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Plan:
    """An experiment with every run that it asks for: sizes solved, data and model found, nothing trained yet.

    Attributes:
        prepared: the experiment, its facts and its runs, as the planner made them.
        baselines: the records that the runs are to stand beside, if `against` was given.
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
        """One specification a run, tuning trials first, in the order in which they run."""
        return tuple(p.spec for p in self.prepared.planned)

    def frame(self) -> pd.DataFrame:
        """The grid as a pandas data frame, one row a run.

        Returns:
            Columns: `task`, `method` (the label), `seed`, `trial` (None for a final run), `steps`, `lr` (None while
            trials have to choose it), `trainable` (parameters without the head), `size` ("matched", "nearest",
            "native", "explicit" or "exempt"), `deviation` (a fraction of the budget), `spec_id`.
        """
        import pandas as pd

        rows = [
            {
                "task": p.spec.task.name,
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

    def results_dir(self, given: PathLike | None = None) -> Path:
        """Where the records go: the directory given, or results/NAME; never among the baselines."""
        chosen = _path(given)
        if self.baselines is not None:
            return self.baselines.results_dir(chosen, self.experiment.name)
        return self.prepared.results_dir(chosen)

    def planner(self, before: Sequence[Record], retry_failed: bool = False) -> Callable[[list[Record]], list[Spec]]:
        """The function from the records so far to the specifications that are next, for `run.runner.run`."""
        planner = self.prepared.planner(before, retry_failed)
        return planner if self.baselines is None else self.baselines.planner(planner)

    def session(self, device: str | None = None, results: Path | None = None) -> dict[str, Any]:
        """What each worker builds its session from; trained adapters are kept under `results` if the file says so."""
        keep = results is not None and self.experiment.save_adapters
        return {
            "device": device or self.experiment.device,
            "data_dir": None if self.data_dir is None else str(self.data_dir),
            "plugins": [str(p) for p in self.prepared.catalogue.plugins],
            "adapters": str(Path(str(results)) / "adapters") if keep else None,
        }


class Records(Sequence["Record"]):
    """The records of one results directory, in the order of their file names.

    Attributes:
        folder: the results directory.
        baselines: the directory of the records that these stand beside in a report; None for none.
        outcome: how the `run` that made them ended; None where they were read.
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

        return record.read_all(self.folder)

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
        """One row a training run, failed attempts too; profile passes are left out.

        Returns:
            Columns: `experiment`, `task`, `method` (the label), `method_name`, `seed`, `trial`, `status`, `lr`,
            `trainable`, `peak_bytes`, `seconds` (of the whole run), `spec_id`, `path`, and `test_METRIC` and
            `validation_METRIC` for each metric; what was not measured is missing.
        """
        import pandas as pd

        return pd.DataFrame([_row(r) for r in self if r.kind == "run"])


def _row(r: Record) -> dict[str, Any]:
    sizes, memory, scores = (r.body.get(k) or {} for k in ("parameters", "memory", "metrics"))
    splits = {s: scores.get(s) or {} for s in ("test", "validation")}
    return {
        "experiment": r.experiment,
        "task": r.spec["task"]["name"],
        "method": r.spec["method"]["label"],
        "method_name": r.spec["method"]["name"],
        "seed": r.spec["seed"],
        "trial": r.spec["trial"],
        "status": r.status,
        "lr": r.spec["train"]["lr"],
        "trainable": sizes.get("trainable"),
        "peak_bytes": memory.get("peak_bytes"),
        "seconds": r.body["seconds"]["total"],
        "spec_id": r.spec_id,
        "path": str(r.path),
        **{f"{split}_{name}": value for split, of in splits.items() for name, value in of.items()},
    }


class Report:
    """What the records of a directory say: one table a task, with what can be concluded.

    Attributes:
        folder: the results directory.
        loaded: the comparisons, passes and trials that tables and figures are made from.
    """

    def __init__(self, folder: PathLike, baselines: PathLike | None = None) -> None:
        from peftbench.report import assemble

        self.folder = Path(folder)
        self.loaded: Loaded = (
            assemble.load(self.folder) if baselines is None else assemble.load_against(self.folder, Path(baselines))
        )

    def __repr__(self) -> str:
        return f"Report({str(self.folder)!r}, {len(self.loaded.comparisons)} tables)"

    @property
    def place(self) -> Path:
        """Where `write` puts the report if it is not told."""
        from peftbench.report import assemble

        return self.folder / assemble.FOLDER

    def _repr_html_(self) -> str:
        return str(self.frame().to_html())

    def rows(self) -> list[dict[str, Any]]:
        """One JSON-ready mapping a configuration and task, failed ones too; seconds and bytes, unrounded."""
        from peftbench.report import assemble

        return assemble.rows(self.folder, self.loaded)

    def frame(self) -> pd.DataFrame:
        """`rows` as a pandas data frame: one row a configuration and task.

        Returns:
            Among the columns are `task`, `method` (the label), `mean` and `sd` of the primary `metric` on the test
            split over `n` seeds, `relative` (to the reference's mean), `trainable`, `peak_memory_bytes`,
            `step_seconds` and `step_ratio`; `report.tables.export.row` has them all.
        """
        import pandas as pd

        return pd.DataFrame(self.rows())

    def table(self) -> str:
        """The tables for a terminal of 120 columns, with their notes: what `peftbench run` prints."""
        from peftbench.report import assemble

        return assemble.text_table(self.folder, self.loaded)

    def write(self, out: PathLike | None = None) -> Path:
        """Write every table and figure to `out` (the results directory's `report` if not given).

        Returns:
            The path of `report.md`, which shows them all.

        Raises:
            UserError: there are no runs, or the directory cannot be written to.
        """
        from peftbench.report import assemble

        return assemble.write(self.folder, _path(out), self.loaded)[0]

    def refresh(self) -> Path:
        """`write` under the results directory, unless the report there is up to date."""
        from peftbench.report import assemble

        return assemble.refresh(self.folder, self.loaded)

    def check(self, out: PathLike | None = None) -> list[str]:
        """One line for each file of the written report that is not, byte for byte, what the records give."""
        from peftbench.report import assemble

        return assemble.check(self.folder, _path(out), self.loaded)


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
    """Read, check and plan an experiment. Nothing is trained, and no network is loaded.

    Args:
        experiment: the path of a YAML file, the name of a packaged experiment ("quickstart"), the mapping that such a
            file holds, or an experiment that was read before.
        only: parts of the grid: "method=lora", "task=glue/rte", "seed=0".
        methods: further methods, written as in the file: "lora: {rank: 2}".
        overrides: values in place of the file's: "budget.steps=10", "methods.lora.rank=4".
        data_dir: the folder with data sets such as GLUE's official files.
        plugins: files with methods of your own.
        against: a results directory; only the new methods are planned, on the batches, seeds and budget of its runs.
        model: a transformers network in memory, in place of the file's backbone. Its weights are saved once in the
            cache, because runs happen in processes of their own.
        tokenizer: the tokenizer of `model`.

    Raises:
        UserError: something is wrong with what was given; the message names every mistake, and the fix.
    """
    from peftbench.estimate.forecast import measures
    from peftbench.plan import baselines, prepare, read

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
    found, beside = baselines.prepared(loaded, only, given, files, Path(against), measures(given))
    return Plan(found, beside, given, tuple(beside.remarks))


def run(
    plan: Plan | PathLike | Mapping[str, Any],
    results: PathLike | None = None,
    *,
    device: str | None = None,
    jobs: int | None = None,
    retry_failed: bool = False,
    threads: int | None = None,
    executor: str = "local",
    progress: bool | View = False,
) -> Records:
    """Run what is missing of a plan, in worker processes; what has a finished record is not run again.

    Args:
        plan: what `plan` returned, or what it takes as its experiment.
        results: the directory for records; results/NAME by default. The same directory resumes.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps", in place of the file's.
        jobs: worker processes, in place of the file's. Several share the machine, and then no times are recorded.
        retry_failed: repeat runs that diverged, ran out of memory or raised an error, too.
        threads: of a single worker and of the pass that measures times; all cores by default.
        executor: what carries out the runs: "local", the worker processes of this machine, or the name of an executor
            that an installed package adds. The records are the same.
        progress: True prints a line a run, False only what goes wrong, on standard error; or a `View` of your own.

    Returns:
        All records of the directory; `.outcome` says how the runs of the plan stand.

    Raises:
        UserError: the directory is in use or cannot be written, there is no such executor, or data or model changed
            since the plan was made.
        peftbench.run.executors.ExecutorError: the executor cannot carry out runs here.
    """
    from peftbench.records import record
    from peftbench.run import runner
    from peftbench.run.view import Lines, Quiet

    asked = plan if isinstance(plan, Plan) else _plan(plan)
    if (wanted := device or asked.experiment.device) not in ("auto", "cpu"):
        from peftbench.backbones.devices import pick  # torch: seconds, which only such a device is worth

        pick(wanted)
    folder, workers = asked.results_dir(results), jobs or asked.experiment.jobs
    asked.prepared.check_jobs(workers)
    view = (Lines() if progress else Quiet()) if isinstance(progress, bool) else progress
    outcome = runner.run(
        asked.planner(record.read_all(folder), retry_failed),
        folder,
        experiment=asked.experiment.name,
        overrides=asked.experiment.overrides,
        reference=asked.experiment.reference,
        expected=len(asked),
        session_kwargs=asked.session(device, folder),
        jobs=workers,
        threads=threads if workers == 1 else None,
        profile_threads=threads,
        executor=executor,
        retry_failed=retry_failed,
        view=view,
    )
    return Records(folder, None if asked.baselines is None else asked.baselines.folder, outcome)


_plan = plan  # `run` has a parameter of that name


def records(folder: PathLike) -> Records:
    """The records under a results directory; none where it does not exist yet.

    Raises (when they are first looked at):
        UserError: a file there is damaged, edited or foreign; the message names it.
    """
    return Records(folder)


def report(records: Records | PathLike, *, against: PathLike | None = None) -> Report:
    """Compare what ran: tables, figures and conclusions from records alone.

    Args:
        records: what `run` or `records` returned, or a results directory.
        against: a directory of records to stand in the same tables; that of the plan's `against` by default.
    """
    if isinstance(records, Records):
        return Report(records.folder, against or records.baselines)
    return Report(records, against)


def attach(
    method: str,
    model: Any,
    tokenizer: Any = None,
    *,
    roles: Mapping[str, Any] | None = None,
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
        method: its name, as `peftbench methods` lists them.
        model: a sequence classifier, causal or encoder-decoder model of transformers.
        tokenizer: its tokenizer; needed to train on texts.
        roles: where the roles are, for an architecture that is not known; as `backbone.roles` in a file.
        plugins: files with methods of your own.
        seed: of the adapter's initial values.
        hyper: the method's hyperparameters: `rank=8`, `alpha=16.0`.

    Raises:
        UserError: an unknown method or hyperparameter, or a network that the method does not fit.
    """
    from peftbench.run.attached import Attached

    return Attached.to(method, model, tokenizer, hyper, roles=roles, plugins=[Path(p) for p in plugins], seed=seed)
