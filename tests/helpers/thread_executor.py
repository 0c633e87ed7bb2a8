"""An executor of a third party: each job is a thread of this process. Nothing but the documented interface is used."""

from __future__ import annotations

import queue
import threading
from typing import Any

from peftbench.run.attempt import SessionHost, write_killed
from peftbench.run.executors import Ended, Event, Progressed, Setup, Started, cores
from peftbench.run.jobs import Job, Start

opened: list[Setup] = []  # every setup that the runner asked for, in order


class ThreadExecutor:
    shares_files = True

    def __init__(self, setup: Setup) -> None:
        opened.append(setup)
        self.setup = setup
        self.waiting: list[Job] = []
        self.running: dict[int, tuple[Job, SessionHost, Start]] = {}  # by worker
        self.events: queue.Queue[Event] = queue.Queue()
        self.stop = threading.Event()

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def submit(self, job: Job) -> None:
        self.waiting.append(job)

    def poll(self, timeout_seconds: float) -> list[Event]:
        for worker in range(1, self.setup.slots + 1):
            if self.waiting and worker not in self.running:
                job = self.waiting.pop(0)
                host = SessionHost(self.setup.session, self.setup.session_kwargs(cores()))
                self.running[worker] = (job, host, Start.now())
                self.events.put(Started(worker, job))
                threading.Thread(target=self.work, args=(worker, job, host), daemon=True).start()
        try:
            event = self.events.get(timeout=timeout_seconds)
        except queue.Empty:
            return []
        if not isinstance(event, Ended):
            return [event]
        return [event] if self.running.pop(event.worker, None) else []  # none: the run was killed before it ended

    def work(self, worker: int, job: Job, host: SessionHost) -> None:
        def report(facts: Any) -> None:
            self.events.put(Progressed(worker, job, facts))

        self.events.put(Ended(worker, job, host.carry_out(job, report, self.stop.is_set)))

    def abandon(self) -> None:
        self.waiting.clear()
        self.stop.set()

    def kill(self, reason: str) -> None:
        self.waiting.clear()
        for worker, (job, host, started) in self.running.items():
            self.events.put(Ended(worker, job, write_killed(job, host.env, started, reason)))

    def close(self, patience_seconds: float = 5) -> None:
        self.stop.set()
