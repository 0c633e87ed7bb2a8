"""The workers of a ray cluster, as the driver sees them: where they are, what they have, and what they answer.

A worker is an actor (ray_node.py) that takes its share of a node as long as it lives. It answers one call at a time:
first with its versions, then with the files that it lacks, and from then on with its news.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from peftbench.errors import UserError
from peftbench.records.spec import RunSpec, Spec
from peftbench.run.executors import ExecutorError, Setup, ray_places, ray_versions
from peftbench.run.executors.ray_connection import Cluster
from peftbench.run.executors.ray_files import Tree, trees
from peftbench.run.executors.ray_node import NodeWorker
from peftbench.run.executors.ray_options import Options
from peftbench.run.executors.ray_places import OVERHEAD_BYTES, Needs, Node
from peftbench.run.jobs import Job, Start

POLL_SECONDS = 0.25  # that a worker waits for news before it answers that there are none
CHECKED_SECONDS = 30.0  # for the first workers to answer with their versions, before any of them has a job
BUSY_SECONDS = 30.0  # without room on a node, until the user is told
CLOSES_SECONDS = 3.0  # for workers to end, beyond the patience with their processes
FAILED_STARTS = 3  # workers that may die one after another before any of them was ready
UNLIMITED = 10**6


@dataclass
class Worker:
    """A live worker.

    Attributes:
        number: from 1.
        node: where it is, or waits to be.
        needs: what it takes of the node.
        actor: ray's handle.
        trees: the user's files that it reads, by key.
        since: when it was asked for, in seconds of `time.monotonic`.
        call: the answer that is awaited; None between two calls.
        step: what the call is: "versions", "lacking", or "poll".
        is_idle: whether it can take a job.
        env: what records say of its process; None before that is ready.
        job: what it is running.
        started: when that job was given.
        last_job: what it ran last.
        kill_reason, kill_by: why its job is to be killed, and by when it must have said so.
    """

    number: int
    node: Node
    needs: Needs
    actor: Any
    trees: Mapping[str, Tree]
    since: float
    call: Any = None
    step: str = "versions"
    is_idle: bool = False
    env: Mapping[str, Any] | None = None
    job: Job | None = None
    started: Start | None = None
    last_job: Job | None = None
    kill_reason: str | None = None
    kill_by: float | None = None

    def give(self, job: Job, checkpoint: bytes | None = None) -> None:
        """Hand over a job, with the checkpoint of an earlier attempt if there is one; the worker is idle."""
        self.job, self.last_job, self.started, self.is_idle = job, job, Start.now(), False
        self.actor.give.remote(job.to_json(), *([] if checkpoint is None else [checkpoint]))


@dataclass(frozen=True)
class Reply:
    """What a worker has answered.

    Attributes:
        worker: whose answer it is.
        news: as `NodeWorker.poll` gives them; empty if the worker is dead.
        death: what ray says of its death; None while it lives. A dead worker is no longer among the workers.
    """

    worker: Worker
    news: Mapping[str, Any]
    death: str | None = None


class Workers:
    """All workers of one executor.

    Args:
        setup: as for any executor.

    Attributes:
        cluster: where they are.

    Raises:
        UserError: there is no such cluster, or it has no node of the kind that the user asks for.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup, self.options = setup, Options.of(setup.options)
        self._versions = ray_versions.here()
        self.cluster = Cluster(self.options.address)
        self._actor_class = ray.remote(NodeWorker)
        self._workers: list[Worker] = []
        self._notices: list[str] = []
        self._specs: dict[str, Spec] = {}
        self._trees: dict[str, Tree] | None = None
        self._pieces: dict[str, list[tuple[str, Any]]] = {}
        self._failed_starts, self._are_checked = 0, False
        self._roomless_since: float | None = None
        self._told_busy = False
        self._device, self._gpus = self._choose_device()
        self._profile_node = self._choose_profile_node() if setup.exclusive else None

    def __iter__(self) -> Iterator[Worker]:
        return iter(list(self._workers))

    @property
    def limit(self) -> int:
        """The largest number of workers."""
        if self.setup.exclusive or any(isinstance(s, RunSpec) and s.train.seconds for s in self._specs.values()):
            return 1  # runs under a budget of seconds must not share a machine
        return self.options.workers or (self.setup.jobs if self.setup.jobs > 1 else UNLIMITED)

    def read_files_of(self, spec: Spec) -> None:
        """Let the workers have the user's files that a run with this specification reads."""
        if spec.id not in self._specs:
            self._specs[spec.id], self._trees = spec, None

    def idle(self) -> list[Worker]:
        """The workers that can take a job now; none while the first are still asked for their versions."""
        now = time.monotonic()
        if not self._are_checked and any(w.step == "versions" and now - w.since < CHECKED_SECONDS for w in self):
            return []
        found = [w for w in self._workers if w.is_idle]
        self._are_checked |= bool(found)
        return found

    def suits(self, worker: Worker, job: Job) -> bool:
        """Whether a worker has what a job needs: memory, and the files."""
        has_files = worker.trees.keys() == self._all_trees().keys()
        return has_files and self._needs([job], worker.node).memory <= worker.needs.memory

    def place(self, queue: Sequence[Job]) -> None:
        """Ask for the workers that the queue is worth, where there is room; end idle ones that suit none of it.

        Raises:
            UserError: no node has had room for a job for the seconds that the user waits.
            ClusterLost: the cluster is gone.
        """
        if not queue:
            for worker in [w for w in self._workers if w.step == "versions"]:
                self.remove(worker)  # it still waits for a place, and nothing is left for it
            return
        for worker in self.idle():
            if not any(self.suits(worker, job) for job in queue):
                self._end(worker)
        free = sum(w.job is None for w in self._workers)
        while free < len(queue) and len(self._workers) < self.limit and (node := self._choose_node(queue)):
            self._ask_for(node, self._needs(queue, node))
            free += 1
        self._wait_for_room(queue)

    def replies(self, timeout_seconds: float, wanted: bool) -> list[Reply]:
        """The news of workers, after waiting at most so many seconds for the first.

        Args:
            timeout_seconds: how long to wait.
            wanted: whether there are jobs in the queue.

        Raises:
            UserError: the code or the packages of a node are not those of this machine.
            ExecutorError: a worker has a bug.
        """
        for worker in self._workers:
            if worker.call is None:
                worker.call = worker.actor.poll.remote(POLL_SECONDS, wanted)
        calls = {worker.call: worker for worker in self._workers}
        if not calls:
            time.sleep(timeout_seconds)
            return []
        ready, _ = ray.wait(list(calls), num_returns=1, timeout=timeout_seconds)
        if ready:
            ready, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
        return [reply for call in ready if (reply := self._reply(calls[call], call))]

    def fetch(self, call: Any) -> Any:
        """The answer to a call; raises RayError where the worker is dead."""
        return ray.get(call)

    def take_notices(self) -> list[str]:
        """What the user should know; each is returned once."""
        taken, self._notices = self._notices, []
        return taken

    def abandon(self) -> None:
        """Ask all jobs to stop between two steps; end the workers without one."""
        for worker in self:
            if worker.job is None:
                self._end(worker)
            else:
                worker.actor.abandon.remote()

    def kill(self, reason: str, by: float) -> None:
        """End all jobs. A worker that has not said so at the time `by` of `time.monotonic` is ended itself."""
        for worker in self:
            if worker.job is None:
                self.remove(worker)
            else:
                worker.kill_reason, worker.kill_by = reason, by
                worker.actor.kill.remote(reason)

    def remove(self, worker: Worker) -> None:
        """End a worker at once."""
        self._workers.remove(worker)
        with suppress(RayError):
            ray.kill(worker.actor)

    def note_death(self, worker: Worker, how: str) -> str:
        """Note that a worker has died; returns whether its node has, in words.

        Raises:
            ExecutorError: on nodes that live, too many died one after another before they were ready.
        """
        if not worker.node.answers:
            self.cluster.shun(worker.node)
            return "the node is gone"
        if worker.env is None:
            self._failed_starts += 1
            if self._failed_starts >= FAILED_STARTS:
                raise ExecutorError(
                    f"{FAILED_STARTS} workers in a row died while starting; ray says: {how} If nothing "
                    "else is wrong, see that RAY_AUTH_MODE is the same here and on all nodes"
                )
        return "its process on the node is gone"

    def close(self, patience_seconds: float) -> None:
        """End all workers, and the cluster if it was started for them."""
        closing = [w.actor.close.remote(patience_seconds) for w in self if w.step == "poll"]
        if closing:
            with suppress(RayError):
                ray.wait(closing, num_returns=len(closing), timeout=patience_seconds + CLOSES_SECONDS)
        for worker in self:
            self.remove(worker)
        self.cluster.close()

    def _reply(self, worker: Worker, call: Any) -> Reply | None:
        """The reply that an answer is; None for one of the first two steps, which lead on to the next."""
        worker.call = None
        try:
            answer = ray.get(call)
        except RayError as error:
            said = str(error)
            if worker.step == "versions" and ray_versions.is_missing(said):
                raise UserError(ray_versions.missing(str(worker.node))) from error
            if isinstance(error, RayTaskError):
                raise ExecutorError(f"node {worker.node}: {said}") from error
            self.remove(worker)
            return Reply(worker, {}, " ".join(said.split()))
        if worker.step == "versions":
            self._compare(worker, answer)
        elif worker.step == "lacking":
            self._start(worker, answer)
        else:
            worker.is_idle = answer["idle"] and (worker.job is None or answer["ended"] is not None)
            if answer["env"] is not None:
                worker.env, self._failed_starts = answer["env"], 0
            return Reply(worker, answer)
        return None

    def _compare(self, worker: Worker, there: Mapping[str, str | None]) -> None:
        """Go on with a worker whose versions are those of this machine.

        Raises:
            UserError: they are not, and no job has begun; later on, the node is left out.
        """
        difference = ray_versions.difference(str(worker.node), there, self._versions)
        if difference is None:
            worker.step = "lacking"
            worker.call = worker.actor.lacking.remote([tree.to_json() for tree in worker.trees.values()])
            return
        if not self._are_checked:
            raise UserError(difference)
        self.cluster.refuse(worker.node)
        self._notices.append(f"{difference}. It is left out")
        self.remove(worker)

    def _start(self, worker: Worker, lacking: Sequence[str]) -> None:
        """Send the files that a worker's node lacks, and start its process."""
        for key in lacking:
            if key not in self._pieces:
                self._pieces[key] = [(name, ray.put(piece)) for name, piece in worker.trees[key].pieces()]
            worker.actor.install.remote(key, self._pieces[key])
        options = {
            "jobs": 1 if self.limit == 1 else max(2, self.setup.jobs),  # above 1, records carry no times
            "threads": self._threads(worker.needs.cpus if self.setup.exclusive else 1),
            "exclusive": self.setup.exclusive,
            "devices": self.setup.devices,
            "env": dict(self.options.env),
        }
        kwargs = {**self.setup.kwargs, **({} if self._device is None else {"device": self._device})}
        worker.actor.start.remote(self.setup.session, kwargs, options)
        worker.step = "poll"

    def _threads(self, otherwise: int) -> int:
        """CPU threads of a job. The option is about training; a profile pass has those that the runner says."""
        asked = None if self.setup.exclusive else self.options.threads
        return asked or self.setup.threads or otherwise

    def _needs(self, jobs: Sequence[Job], node: Node) -> Needs:
        """What a worker on a node needs that can carry out any of the jobs."""
        memory = OVERHEAD_BYTES
        if not self._gpus:  # else the peak is that of the GPU, which a worker has to itself
            memory += max((self.setup.peaks.get(job.spec.id, 0) for job in jobs), default=0)
        if self.options.memory is not None:
            memory = self.options.memory
        if self.setup.exclusive:  # all cores and devices, so that nothing else runs there
            return Needs(node.amount("CPU"), node.amount("GPU") if self._gpus else 0, memory)
        return Needs(self._threads(1), self._gpus, memory)

    def _choose_device(self) -> tuple[str | None, int]:
        """The session's device on a node, None for its own choice, and the number of GPUs that a worker takes."""
        given = self.setup.kwargs.get("device")
        if given is not None and given.startswith("cuda:"):
            raise UserError(f"--device {given}: ray chooses the GPU of each run; give cuda")
        if given == "cuda" or (given == "auto" and any(node.amount("GPU") for node in self.cluster.nodes())):
            return "cuda", self.setup.devices
        return given, 0

    def _choose_profile_node(self) -> Node:
        kind = self.options.profile_node
        nodes = self.cluster.nodes()
        found = ray_places.for_profile(nodes, kind, self._gpus, self.cluster.own_id)
        if found is None:
            raise UserError(
                f"ray.profile_node: {'no node is called ' + kind if kind else 'no node serves'}; one measures times. "
                f"The nodes: {ray_places.listed(nodes)}. Give the address of one, or a resource or label of it"
            )
        return found

    def _choose_node(self, queue: Sequence[Job]) -> Node | None:
        """The node for a further worker; None if none has room."""
        taken: dict[str, list[Needs]] = {}
        for worker in self._workers:
            taken.setdefault(worker.node.id, []).append(worker.needs)
        nodes = self.cluster.nodes()
        if self._profile_node is not None:
            if self._profile_node.id not in {node.id for node in nodes}:  # it is gone; another of its kind serves too
                kind, own_id = self.options.profile_node, self.cluster.own_id
                self._profile_node = ray_places.for_profile(nodes, kind, self._gpus, own_id) or self._profile_node
            nodes = [node for node in nodes if node.id == self._profile_node.id]
        return ray_places.choose(nodes, self._needs(queue, nodes[0]), taken) if nodes else None

    def _ask_for(self, node: Node, needs: Needs) -> None:
        numbers = {w.number for w in self._workers}
        number = next(n for n in range(1, len(numbers) + 2) if n not in numbers)
        where = NodeAffinitySchedulingStrategy(node.id, soft=False)
        actor: Any = self._actor_class.options(
            num_cpus=needs.cpus, num_gpus=needs.gpus, memory=needs.memory, max_restarts=0, scheduling_strategy=where
        ).remote()
        worker = Worker(number, node, needs, actor, dict(self._all_trees()), time.monotonic())
        worker.call = actor.versions.remote()
        self._workers.append(worker)

    def _all_trees(self) -> dict[str, Tree]:
        if self._trees is None:
            self._trees = {tree.key: tree for tree in trees(self._specs.values(), self.setup.kwargs)}
        return self._trees

    def _end(self, worker: Worker) -> None:
        """End an idle worker in order: what its process has started ends too."""
        if worker.step != "poll":
            self.remove(worker)
            return
        self._workers.remove(worker)
        worker.actor.close.remote(0)
        worker.actor.__ray_terminate__.remote()

    def _wait_for_room(self, queue: Sequence[Job]) -> None:
        """Tell the user where jobs wait for room.

        Raises:
            UserError: no node has had room for the seconds that the user waits.
        """
        now = time.monotonic()
        if self._workers:
            self._roomless_since = None
            waiting = [w for w in self._workers if w.step == "versions" and now - w.since > BUSY_SECONDS]
            if len(waiting) == len(self._workers) and not self._told_busy:
                self._told_busy = True
                text = f"waiting for {waiting[0].needs} on node {waiting[0].node}: other programs have them"
                self._notices.append(text)
            return
        patience = 0.0 if self.cluster.is_own else self.options.wait
        needs = self._needs(queue, self._profile_node or Node("", "", ""))
        if self._roomless_since is None:
            self._roomless_since = now
            self._notices.append(f"no node has room for a run, which needs {needs}; waiting {patience:g} s for one")
        if now - self._roomless_since >= patience:
            raise UserError(
                f"no node has room for a run, which needs {needs}. The nodes: "
                f"{ray_places.listed(self.cluster.nodes())}. Add a node, or say what a run takes with --set "
                "ray.threads=N or --set ray.memory=GB"
            )
