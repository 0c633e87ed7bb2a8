"""The one rule for what another command repeats: planner, runner, trials and notes ask here.

Attempts that the surroundings ended say nothing about a method, so they are repeated, up to `ATTEMPTS` times. Results
(diverged, oom, error) are repeated on request only. A timeout is a result under its limit: it is repeated when the
limit is raised.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from peftbench.records import record
from peftbench.records.record import Record

ATTEMPTS = 3  # that the surroundings may end before a spec is given up
LOST = ("killed", "interrupted")  # statuses that the surroundings cause
STOPPED = "interrupted"  # begins the reason of a killed run that the user wanted to end


@dataclass(frozen=True)
class TimeLimits:
    """Seconds after which an attempt is ended; None for no limit. They belong to a command, not to a spec.

    Attributes:
        run: of a whole attempt: loading, training and tests.
        step: between two signs of life after the first training step: a step, or a batch of an evaluation.
    """

    run: float | None = None
    step: float | None = None


class Retries:
    """What a command repeats, given the records that are there.

    Args:
        records: all records of the results directory.
        failed: whether failed attempts are repeated too (`--retry-failed`).
        limits: the time limits of this command.
    """

    def __init__(self, records: Iterable[Record], failed: bool = False, limits: TimeLimits | None = None) -> None:
        now = list(records)
        self.failed, self.limits = failed, limits or TimeLimits()
        self.latest = record.latest(now)
        self.lost = Counter(r.spec_id for r in now if is_lost(r))

    def is_open(self, spec_id: str) -> bool:
        """Whether a spec is to be attempted."""
        last = self.latest.get(spec_id)
        if last is None:
            return True
        if last.is_finished:
            return False
        if self.failed or last.status == "abandoned":
            return True
        if last.status == "timeout":
            return self._is_raised(last)
        return last.status in record.RETRIED and not self.is_given_up(spec_id)

    def is_given_up(self, spec_id: str) -> bool:
        """Whether the surroundings ended so many attempts at a spec that no other one is made without a request."""
        last = self.latest.get(spec_id)
        return last is not None and last.status in LOST and self.lost[spec_id] >= ATTEMPTS

    def has_ended(self, spec_id: str) -> bool:
        """Whether a spec has a last record that another command would not replace by itself."""
        last = self.latest.get(spec_id)
        return last is not None and (last.status not in record.RETRIED or self.is_given_up(spec_id))

    def _is_raised(self, last: Record) -> bool:
        """Whether the limit that ended an attempt is larger now, or gone."""
        passed = last.body.time_limit
        if passed is None:
            return False
        now = self.limits.run if passed.of == "run" else self.limits.step
        return now is None or now > passed.seconds


def is_lost(r: Record) -> bool:
    """Whether the surroundings ended an attempt: its process died, or the machine failed it. The user did not."""
    is_wanted = r.status == "killed" and (r.body.reason or "").startswith(STOPPED)
    return r.status in LOST and not is_wanted
