"""A session trains and measures one run after another; imports, base weights and data are loaded once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec
import torch

from peftbench import cache, tasks
from peftbench.backbones import devices, limits
from peftbench.backbones.load import Backbone, load
from peftbench.backbones.unchanged import Snapshot
from peftbench.errors import UserError
from peftbench.method import adapter_file
from peftbench.method.base import Method
from peftbench.method.edit import Edit
from peftbench.method.registry import find, make
from peftbench.records import environment, user_file
from peftbench.records.spec import BackboneSpec, MethodSpec, ProfileSpec, RunSpec, TaskSpec
from peftbench.run import process_state
from peftbench.run.checkpoint import Checkpoints
from peftbench.run.failures import noted_as_loading, release_frames
from peftbench.run.jobs import Progress, Stop
from peftbench.run.one_run import Clock, Run
from peftbench.run.parallel import launch
from peftbench.run.parallel.ranks import ONE, Ranks
from peftbench.run.profile.interleaved import profile
from peftbench.run.train import Abandoned, Diverged
from peftbench.tasks import text_limits, tokens
from peftbench.tasks.summary import summarise

__all__ = ["Abandoned", "Diverged", "Session"]

SHARED_FROM = 2**30  # bytes of a network whose copies in a profile pass share their frozen weights: no cache holds
# such weights from one configuration's turn to the next, so that sharing them changes no time
KEPT_BACKBONES = 2  # networks kept in memory at a time: tasks with other heads need other networks


class Session:
    """One process's device, data and networks.

    Args:
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        threads: torch's; None leaves them as they are.
        data_dir: the folder with data sets.
        plugins: files with methods.
        shared: other runs use the machine at the same time, so no times are reported.
        adapters: the folder where trained adapters are kept; None for nowhere.
        deterministic: use only kernels that give the same bits each time.
        checkpoints: the folder where unfinished training is kept, and how often; None for nowhere.
        ranks: the processes that share each run, if this is one of them.
        copies: the path of what stands in for a file or folder that specifications name, by the path that they have.

    Attributes:
        is_spent: whether a run changed this process for good, so that no other run should follow in it.
    """

    def __init__(
        self,
        device: str = "auto",
        threads: int | None = None,
        data_dir: Path | str | None = None,
        plugins: Iterable[Path | str] = (),
        shared: bool = False,
        adapters: Path | str | None = None,
        deterministic: bool = False,
        checkpoints: Mapping[str, Any] | None = None,
        ranks: Ranks = ONE,
        copies: Mapping[str, str] | None = None,
    ) -> None:
        user_file.use_copies(copies or {})
        given = {"device": device, "threads": threads, "data_dir": data_dir, "plugins": [str(p) for p in plugins]}
        keep = {"adapters": adapters, "deterministic": deterministic, "checkpoints": checkpoints, "shared": shared}
        self.given, self.ranks = {**given, **keep, "copies": copies}, ranks
        if threads is not None:
            torch.set_num_threads(threads)
        devices.compute_deterministically(deterministic)
        self.device = devices.pick(device)
        self.data_dir = None if data_dir is None else Path(data_dir)
        self.plugins, self.shared = tuple(plugins), shared
        self.adapters = None if adapters is None else Path(adapters)
        self.checkpoints: Checkpoints | None = None
        if checkpoints is not None:
            env = checkpoints.get("env") or environment.facts(str(self.device), threads, self.plugins, deterministic)
            self.given["checkpoints"] = {**checkpoints, "env": env}  # of a run, however many processes share it
            self.checkpoints = Checkpoints(Path(checkpoints["folder"]), checkpoints["every"], env)
        self._datasets: dict[str, tasks.Dataset] = {}
        self._summaries: dict[str, dict[str, Any]] = {}
        self._tokenizers: dict[tuple[str, str | None], Any] = {}
        self._backbones: OrderedDict[str, Backbone] = OrderedDict()
        self._snapshots: dict[int, Snapshot] = {}
        self._encoded: dict[int, dict[tuple[str, int], dict[str, tokens.Encoded]]] = {}
        self.is_spent = False

    def execute(
        self, spec: RunSpec, on_progress: Progress = lambda _: None, stop: Stop = lambda: False
    ) -> dict[str, Any]:
        """Train and test one run.

        Args:
            spec: the run.
            on_progress: called with the phase, the step and the loss.
            stop: called between two steps; True abandons the run.

        Returns:
            What the record says in addition to the spec.

        Raises:
            Diverged: the loss or a trained weight is no longer a number.
            Abandoned: `stop` returned True.
            UserError: data or weights changed since the plan, or the method does not fit the network.
        """
        if spec.train.ranks > 1 and self.ranks is ONE:
            return launch.execute(spec, self.given, on_progress, stop)
        clock = Clock()
        on_progress({"phase": "load"})
        method = self.method(spec.method)  # first: what importing its file changes then holds for every run alike
        with noted_as_loading():
            dataset = self.dataset(spec.task)
            backbone = self.backbone(spec.backbone, dataset)
            data = self._kept_encoding(dataset, backbone, spec.train.max_length)
        if spec.trial is not None:  # trials are compared without the test split, so they do not have it
            dataset, data = replace(dataset, test=()), {k: v for k, v in data.items() if k != "test"}
        summary = self._summary(spec, dataset, data, backbone)
        clock.lap("load")
        run = Run(spec, dataset, backbone, data, method, on_progress, stop, not self.shared, self.data_dir)
        run.checkpoints, run.ranks = self.checkpoints, self.ranks
        before, edit = process_state.snapshot(), Edit(backbone)
        try:
            _compile(backbone, spec.backbone.compile)
            with devices.explained_nondeterminism():
                fitted = run.train(edit, clock)
                scores = run.test(fitted, clock) if spec.trial is None else run.trial_scores(fitted)
            body = {"data": summary, **run.describe(edit, fitted, self._adapter_file(spec)), **scores}
        except BaseException as error:
            release_frames(error)  # they hold activations, and restoring weights needs memory
            raise
        finally:
            self._restore(edit, before)
        body["seconds"] = clock.seconds(hide=self.shared)
        return body

    def discard_checkpoint(self, spec: RunSpec) -> None:
        """Remove the checkpoint of a run that will not be attempted again."""
        if self.checkpoints:
            self.checkpoints.discard(spec.id)

    def profile(
        self, spec: ProfileSpec, on_progress: Progress = lambda _: None, stop: Stop = lambda: False
    ) -> dict[str, Any]:
        """Measure step time and latency of every configuration on one task, interleaved.

        No other run may use the machine meanwhile; arguments and errors are those of `execute`.
        """
        with noted_as_loading():
            dataset = self.dataset(spec.task)
            self._backbones.clear()
            first = self._load(spec.backbone, dataset)
            first.shares_weights = len(spec.methods) > 1 and first.bytes >= SHARED_FROM
            others = spec.methods[1:]
            networks = [
                first,
                *(first.twin() if first.shares_weights else self._load(spec.backbone, dataset) for _ in others),
            ]
            for network in networks[1:]:
                network.share_snapshot(first)
            data = self.encode(dataset, first, spec.max_length)
        methods = [self.method(m) for m in spec.methods]
        with devices.explained_nondeterminism():
            return profile(spec, networks, methods, data, on_progress, stop)

    def dataset(self, task: TaskSpec) -> tasks.Dataset:
        """The task's data. Raises `UserError` if they changed since the plan was made."""
        key = task.fingerprint
        if key not in self._datasets:
            dataset = tasks.open_task(task.name, task.options, self.data_dir)
            if dataset.fingerprint != task.fingerprint:
                raise UserError(f"the data of {task.name} changed since the plan was made; run again")
            self._datasets[key] = dataset
        return self._datasets[key]

    def backbone(self, spec: BackboneSpec, dataset: tasks.Dataset) -> Backbone:
        """The base model with a head for this task, kept between runs.

        Raises `UserError` if the weights changed since the plan was made.
        """
        key = repr((asdict(spec), dataset.kind, len(dataset.labels)))
        if key not in self._backbones:
            while len(self._backbones) >= KEPT_BACKBONES:
                self._forget(next(iter(self._backbones.values())))
            self._backbones[key] = backbone = self._load(spec, dataset)
            self._snapshots[id(backbone)], self._encoded[id(backbone)] = Snapshot(backbone), {}
        self._backbones.move_to_end(key)
        return self._backbones[key]

    def _restore(self, edit: Edit, before: dict[str, Any]) -> None:
        """Undo an edit. A network that is not what it was is not used again, nor is a process.

        It raises nothing: the run's own result or error stands, and what follows starts from something new.
        """
        backbone = edit.backbone
        try:
            edit.undo()
            _compile(backbone, False)
            restored = self._snapshots[id(backbone)].difference(backbone) is None
        except Exception:
            restored, self.is_spent = False, True
        if not restored:
            self._forget(backbone)
        if process_state.changed(before):
            self.is_spent = True

    def _forget(self, backbone: Backbone) -> None:
        self._snapshots.pop(id(backbone), None)
        self._encoded.pop(id(backbone), None)
        self._backbones = OrderedDict((k, b) for k, b in self._backbones.items() if b is not backbone)

    def method(self, spec: MethodSpec) -> Method:
        """The method with its hyperparameters."""
        return make(find(spec.name, self.plugins), spec.hyper)

    def _load(self, spec: BackboneSpec, dataset: tasks.Dataset) -> Backbone:
        devices.check_dtype(self.device, spec.dtype)
        labels = len(dataset.labels) if dataset.kind == "classification" else 1
        backbone = load(
            spec.model,
            dataset.kind,
            labels,
            revision=spec.pinned_revision,
            roles=spec.roles,
            dtype=spec.dtype,
            dropout=spec.dropout,
            dropout_version=spec.dropout_version,
            gradient_checkpointing=spec.gradient_checkpointing,
            device="cpu" if self.ranks.shards > 1 else self.device,  # shards move to the device block by block
            tokenizer=self._tokenizers.get((spec.model, spec.pinned_revision)),
        )
        if backbone.fingerprint != spec.fingerprint:
            raise UserError(f"the weights of {spec.model} changed since the plan was made; run again")
        self._tokenizers[spec.model, spec.pinned_revision] = backbone.tokenizer
        return backbone

    def encode(self, dataset: tasks.Dataset, backbone: Backbone, max_length: int) -> dict[str, tokens.Encoded]:
        """The task's splits as token ids, by name; read from the cache if they were tokenised before.

        Raises `UserError` if the network cannot read them.
        """
        folder = cache.root() / "tokens"
        data = tokens.encode(dataset, backbone.tokenizer, max_length, folder, backbone.decoder_start)
        known = limits.of(backbone.net, backbone.kind)
        examples = {split: dataset.split(split) for split in data}
        texts = text_limits.read(dataset.name, max_length, data, examples, backbone.tokenizer, known.counted_token)
        text_limits.check(texts, known)
        return data

    def _kept_encoding(self, dataset: tasks.Dataset, backbone: Backbone, max_length: int) -> dict[str, tokens.Encoded]:
        """What `encode` returns, kept as long as the network is."""
        kept, key = self._encoded[id(backbone)], (dataset.fingerprint, max_length)
        if key not in kept:
            kept[key] = self.encode(dataset, backbone, max_length)
        return kept[key]

    def _summary(
        self, spec: RunSpec, dataset: tasks.Dataset, data: dict[str, tokens.Encoded], backbone: Backbone
    ) -> dict[str, Any]:
        """What was done to the task's data, for the record; the same for all runs with these texts and tokens."""
        key = repr((spec.task.fingerprint, spec.backbone.fingerprint, spec.train.max_length, sorted(data)))
        if key not in self._summaries:
            self._summaries[key] = msgspec.to_builtins(summarise(dataset, data, backbone.tokenizer))
        return self._summaries[key]

    def _adapter_file(self, spec: RunSpec) -> Path | None:
        if self.adapters is None or spec.trial is not None:
            return None
        return self.adapters / adapter_file.name(spec)


def _compile(backbone: Backbone, enabled: bool) -> None:
    """Compile the network in place (its parameters keep their names), or go back to the plain call."""
    backbone.net._compiled_call_impl = None
    if not enabled:
        return
    if backbone.device.type == "cpu":
        _check_compiler()
    torch._dynamo.reset()
    backbone.net.compile()


def _check_compiler() -> None:
    """Raises `UserError` before the first step where torch.compile would find no C++ compiler."""
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler as error:
        raise UserError(
            "compile: true needs a C++ compiler on the CPU, and none was found; install g++ or clang, or set CXX"
        ) from error
