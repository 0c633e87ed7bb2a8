"""Prepare an experiment: the steps from a checked file to the grid, which `run` and `plan` share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from peftbench import cache
from peftbench.errors import UserError, shown
from peftbench.measure import probes
from peftbench.method.catalogue import Catalogue
from peftbench.plan import configurations, design, grid, next_runs, resolve, run_limits
from peftbench.plan.experiment import Experiment
from peftbench.plan.grid import Planned
from peftbench.plan.limits import JOBS
from peftbench.plan.resolve import Facts
from peftbench.plan.run_limits import Measures
from peftbench.plan.selection import Selection
from peftbench.records import user_file
from peftbench.records.record import Record
from peftbench.records.retries import NO_LIMITS, TimeLimits
from peftbench.records.spec import Spec


@dataclass(frozen=True)
class Prepared:
    """An experiment that is ready to run.

    Attributes:
        experiment: the experiment.
        facts: the facts about the base model and the tasks.
        planned: the selected runs of the grid.
        catalogue: the known methods, plugins included.
    """

    experiment: Experiment
    facts: Facts
    planned: Sequence[Planned]
    catalogue: Catalogue

    def results_dir(self, chosen: Path | None) -> Path:
        """Return the directory for records: the chosen one, or results/NAME."""
        return chosen if chosen is not None else Path("results") / self.experiment.name

    def planner(
        self, before: Iterable[Record], retry_failed: bool, limits: TimeLimits = NO_LIMITS
    ) -> Callable[[list[Record]], list[Spec]]:
        """Return the function from the records to all specs, which the runner calls whenever all its runs have ended.

        Args:
            before: the records from before this invocation.
            retry_failed: whether failed runs run again.
            limits: the time limits of this command.
        """
        first = list(before)
        return lambda records: next_runs.all_specs(self.experiment, self.planned, records, retry_failed, first, limits)

    def check_jobs(self, jobs: int) -> None:
        """Refuse no workers, and several with a budget of seconds, because they would slow each other down.

        Raises:
            UserError: `jobs` is below 1, or the budget counts seconds and `jobs` is above 1.
        """
        if not 1 <= jobs <= JOBS:
            raise UserError(f"jobs: given {shown(jobs)}; must be from 1 to {JOBS:,}")
        if self.experiment.budget.seconds is not None and jobs > 1:
            raise UserError(f"--jobs {jobs}: runs that share the machine get less done in the budget's seconds; use 1")

    def with_best_trials(self, records: Iterable[Record]) -> Prepared:
        """Return the experiment with the values of the best trials in the runs whose trials have ended."""
        return replace(self, planned=next_runs.with_best_trials(self.planned, records))

    def expected(self, records: Iterable[Record]) -> int:
        """Return how many runs there will be at the least: those known by now. Extensions and looks add some."""
        return len(next_runs.wanted(self.experiment, self.planned, records))


def prepare(
    experiment: Experiment,
    only: Sequence[str] = (),
    data_dir: Path | None = None,
    plugins: Sequence[Path] = (),
    measures: Callable[[Catalogue], Measures] = lambda _: run_limits.NONE,
) -> Prepared:
    """Check an experiment and plan its runs.

    Args:
        experiment: the experiment, as `read.load` returns it.
        only: `key=value` texts that select a part of the grid, such as "method=lora".
        data_dir: the folder with data sets. If it lacks the files of a task, the task's stand-in runs.
        plugins: files with methods.
        measures: makes the measurements that budgets of tokens and memory need, because planning itself loads no
            network and simulates no step.

    Raises:
        UserError: the experiment cannot run as written, or `data_dir` does not exist.
    """
    if data_dir is not None and not user_file.is_folder(data_dir):
        what = "is a file, not a directory" if user_file.exists(data_dir) else "there is no such directory"
        raise UserError(f"--data-dir {data_dir}: {what}; give the folder that holds the data sets, or leave it out")
    cache.check()
    catalogue = Catalogue(tuple(user_file.resolved(p) for p in plugins))
    expanded = configurations.expand(experiment, catalogue.methods(), catalogue.hyper)
    design.check(experiment, expanded)
    selection = Selection.parse(only, experiment, expanded)
    facts = resolve.gather(experiment, selection, catalogue.stores, data_dir)
    probes.check(experiment.probes, (task.kind for task in facts.tasks), data_dir)
    planned = grid.grid(experiment, facts, expanded, catalogue.parameters, selection, measures(catalogue))
    catalogue.save()
    return Prepared(experiment, facts, planned, catalogue)
