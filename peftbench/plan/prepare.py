"""From an experiment's file to a grid that is ready to run or to be shown: the steps that `run` and `plan` share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from peftbench.errors import UserError
from peftbench.measure import probes
from peftbench.method.catalogue import Catalogue
from peftbench.plan import configurations, grid, next_runs, resolve, run_limits
from peftbench.plan.experiment import Experiment
from peftbench.plan.grid import Planned
from peftbench.plan.resolve import Facts
from peftbench.plan.run_limits import Measures
from peftbench.plan.selection import Only
from peftbench.records.record import Record
from peftbench.records.spec import Spec


@dataclass(frozen=True)
class Prepared:
    """An experiment with its facts and all its runs."""

    experiment: Experiment
    facts: Facts
    planned: Sequence[Planned]
    catalogue: Catalogue

    def results_dir(self, given: Path | None) -> Path:
        """Where records go: the directory given, or results/NAME."""
        return given if given is not None else Path("results") / self.experiment.name

    def planner(self, before: Iterable[Record], retry_failed: bool) -> Callable[[list[Record]], list[Spec]]:
        """The function from records to specs that the runner calls between its rounds."""
        first = list(before)
        return lambda records: next_runs.asked(self.experiment, self.planned, records, retry_failed, first)

    def check_jobs(self, jobs: int) -> None:
        """Raises UserError where so many workers would spoil what the budget counts."""
        if self.experiment.budget.seconds is not None and jobs > 1:
            raise UserError(f"--jobs {jobs}: runs that share the machine get less done in the budget's seconds; use 1")

    def standing(self, records: Iterable[Record]) -> Prepared:
        """With the values that won in the runs whose trials are settled."""
        return replace(self, planned=next_runs.standing(self.planned, records))


def prepare(
    experiment: Experiment,
    only: Sequence[str] = (),
    data_dir: Path | None = None,
    plugins: Sequence[Path] = (),
    measures: Callable[[Catalogue], Measures] = lambda _: run_limits.NONE,
) -> Prepared:
    """Check and plan an experiment: all its runs, `only` applied. Raises UserError for whatever is wrong with it.

    Args:
        experiment: as `read.load` returns it.
        only: parts of the grid, such as "method=lora".
        data_dir: the folder with data sets. One that is not there is a mistake; one that lacks a task's files leaves
            that task to its stand-in.
        plugins: files with methods.
        measures: what budgets of tokens and memory ask of texts and networks. Planning itself loads no network and
            simulates no step: the caller knows who can tell.
    """
    if data_dir is not None and not data_dir.is_dir():
        what = "is a file, not a directory" if data_dir.exists() else "there is no such directory"
        raise UserError(f"--data-dir {data_dir}: {what}; give the folder that holds the data sets, or leave it out")
    catalogue = Catalogue(tuple(p.expanduser().resolve() for p in plugins))
    expanded = configurations.expand(experiment, catalogue.methods(), catalogue.hyper)
    part = Only.parse(only, experiment, expanded)
    facts = resolve.gather(experiment, part, catalogue.stores, data_dir)
    probes.check(experiment.probes, (task.kind for task in facts.tasks), data_dir)
    planned = grid.grid(experiment, facts, expanded, catalogue.parameters, part, measures(catalogue))
    catalogue.save()
    return Prepared(experiment, facts, planned, catalogue)
