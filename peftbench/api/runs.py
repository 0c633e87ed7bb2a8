"""Run what a plan still lacks, in worker processes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from peftbench.api import plans
from peftbench.api.paths import PathLike
from peftbench.api.plans import Plan
from peftbench.api.record_sets import Interrupted, Records
from peftbench.errors import UserError

if TYPE_CHECKING:
    from peftbench.records.record import Record
    from peftbench.run.view import View


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
    planned = plan if isinstance(plan, Plan) else plans.plan(plan)
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
