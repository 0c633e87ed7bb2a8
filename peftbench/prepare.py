"""From an experiment's file to a grid that is ready to run or to be shown: the steps that `run` and `plan` share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from peftbench import calibrate, configurations, experiment, facts, plan, predict
from peftbench.errors import UserError
from peftbench.experiment import Experiment
from peftbench.facts import Facts
from peftbench.manifest import Manifest
from peftbench.only import Only
from peftbench.plan import Planned, Spec
from peftbench.record import Record


@dataclass(frozen=True)
class Prepared:
    """An experiment with its facts and all its runs."""

    experiment: Experiment
    facts: Facts
    planned: Sequence[Planned]
    manifest: Manifest

    def results_dir(self, given: Path | None) -> Path:
        return given if given is not None else Path("results") / self.experiment.name

    def planner(self, before: Iterable[Record], retry_failed: bool) -> Callable[[list[Record]], list[Spec]]:
        """The function from records to specs that the runner calls between its rounds."""
        first = list(before)
        return lambda records: plan.asked(self.experiment, self.planned, records, retry_failed, first)

    def seconds(self, records: Iterable[Record], device: str | None, jobs: int) -> dict[str, float]:
        """Predicted seconds by spec id; measures this machine's speed where that is not known yet."""
        rate = calibrate.rate(self.manifest, device or self.experiment.device, self.experiment.dtype)
        return predict.seconds(self.planned, records, rate, jobs)


def prepare(
    source: str | Path, only: Sequence[str] = (), data_dir: Path | None = None, plugins: Sequence[Path] = ()
) -> Prepared:
    """Read, check and plan the experiment `source`. Raises UserError for whatever is wrong with it.

    A `data_dir` that is not there is a mistake; one that lacks a task's files leaves that task to its stand-in.
    """
    if data_dir is not None and not data_dir.is_dir():
        what = "is a file, not a directory" if data_dir.exists() else "there is no such directory"
        raise UserError(f"--data-dir {data_dir}: {what}; give the folder that holds the data sets, or leave it out")
    read = experiment.load(source)
    manifest = Manifest(tuple(p.expanduser().resolve() for p in plugins))
    expanded = configurations.expand(read, manifest.methods(), manifest.hyper)
    part = Only.parse(only, read, expanded)
    known = facts.gather(read, part, manifest, data_dir)
    planned = plan.grid(read, known, expanded, manifest.parameters, part)
    manifest.save()
    return Prepared(read, known, planned, manifest)
