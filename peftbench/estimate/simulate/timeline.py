"""The memory of a training step over time: the live bytes after every event."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peftbench.estimate.card.traffic import Traffic
from peftbench.measure.memory import LiveTensors


@dataclass
class StepTimeline:
    """What one step did to memory.

    Attributes:
        levels: Sum of live bytes after each event.
        marks: Events at which a part of the step begins; every depth has the same parts.
        phases: (event, name) at which a phase begins.
        lives: The lifetime of every storage.
        flops: Floating-point operations of the step.
        held: Bytes before the step by group, and of 4-bit tensors by name.
        shards: Of a network in shards: bytes of a gathered block, of what stays gathered, and of what can be offloaded.
        optimizer: Class and variant of the optimizer.
        attention: The attention implementation.
        experts: Whether adapters stand at experts, which are then computed one after another.
        reserved: Bytes that CUDA's allocator holds; 0 on a CPU.
        traffic: The kernels of the step.
        left_out: What another program has and the network does not take, with what the network has.
    """

    levels: list[int]
    marks: list[int]
    phases: list[tuple[int, str]]
    lives: list[Any]
    flops: int
    held: dict[str, int] = field(default_factory=dict)
    shards: dict[str, int] = field(default_factory=dict)
    optimizer: str = ""
    attention: str = ""
    experts: bool = False
    reserved: int = 0
    traffic: Traffic | None = None
    left_out: dict[str, Any] = field(default_factory=dict)

    @property
    def peak(self) -> int:
        """Index of the event of the (first) peak."""
        return max(range(len(self.levels)), key=self.levels.__getitem__)

    def parts(self, moment: int) -> dict[tuple[str, str], int]:
        """Return the live bytes by (role, kind) after event `moment`."""
        parts: dict[tuple[str, str], int] = {}
        for life in self.lives:
            if life.born <= moment and (life.died is None or life.died > moment):
                key = (life.role, life.kind)
                parts[key] = parts.get(key, 0) + life.bytes
        return parts

    def phase(self, moment: int) -> str:
        """Return the phase of event `moment`."""
        return next(name for start, name in reversed(self.phases) if start <= max(moment, 1))


class TimelineTracker(LiveTensors):
    """The memory tracker, which also keeps the whole timeline."""

    marks: list[int]
    levels: list[int]
    lives: list[Any]

    def mark(self, *_: Any) -> None:
        """Record that another part of the step begins; ignores the arguments of hooks."""
        self.marks.append(len(self._changes))

    def phase(self, name: str) -> None:
        """Start a phase, which is also a part of the step."""
        super().phase(name)
        self.__dict__.setdefault("marks", []).append(len(self._changes))

    @property
    def phases(self) -> list[tuple[int, str]]:
        """(event, name) at which a phase begins."""
        return self._phases

    def _summary(self) -> dict[str, Any]:
        level, self.levels = 0, []
        for change in self._changes:
            level += change
            self.levels.append(level)
        self.lives = [*self._dead, *self._lives.values()]
        return super()._summary()
