"""The simulated step of a small network, and its comparison with a real one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import real_programs

from peftbench.estimate.count import ModelQuery
from peftbench.estimate.program.programs import Program
from peftbench.estimate.simulate.timeline import StepTimeline, TimelineTracker
from peftbench.estimate.step_estimate import Setting, simulate_step
from peftbench.method.catalogue import Catalogue
from peftbench.method.registry import find, make


def simulated(folder: Path, name: str, hyper: Mapping[str, Any], own: Program, padded: bool) -> StepTimeline:
    """Return the simulated step of the network whose config.json is in `folder`."""
    method = make(find(name), Catalogue().hyper(name, hyper))
    setting = Setting(real_programs.BATCH, real_programs.SEQ, padded=padded, program=own)
    return simulate_step(ModelQuery(str(folder), task="generation"), method, setting)


def check_equal(real: TimelineTracker, predicted: StepTimeline) -> None:
    """Compare the peak of each phase, what is left, and the parts of the peak."""
    course = real_programs.course
    assert course(predicted.levels, predicted.phases) == course(real.levels, real.phases)
    parts: dict[str, int] = {}
    for (_, kind), size in predicted.parts(predicted.peak).items():
        parts[kind] = parts.get(kind, 0) + size
    assert parts == {kind: size for kind, size in real.record()["at_peak"].items() if size}
