"""One training run: seeds, training, the test, and what its record says."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from peftbench.backbones import devices, limits, prompt
from peftbench.backbones.load import Backbone
from peftbench.errors import UserError
from peftbench.measure import timing
from peftbench.measure.probes import Probes, TrainedNetwork
from peftbench.method import adapter_file, registry
from peftbench.method.base import Method
from peftbench.method.edit import Edit
from peftbench.records import scratch
from peftbench.records.spec import RunSpec
from peftbench.run import evaluate
from peftbench.run.checkpoint import Checkpoints, RunCheckpoint
from peftbench.run.jobs import Progress, Stop
from peftbench.run.parallel.ranks import ONE, Ranks
from peftbench.run.train import Abandoned, Diverged, Fitted, Trainer, fit
from peftbench.tasks import Dataset, batches, metrics, text_limits
from peftbench.tasks.tokens import Array, Encoded

KEPT_SAMPLES = 5  # generated examples shown in a record


class Run:
    """The parts of one run, in the order in which a session calls them: train, test, describe.

    Args:
        spec: the run.
        dataset: the task's examples and metrics.
        backbone: the network, without a method yet.
        data: the token ids of each split, by name.
        method: the method with its hyperparameters.
        on_progress: called with the phase, the step and the loss.
        stop: called between two steps; True abandons the run.
        timed: whether the record says how long steps take.
        data_dir: where probes find texts.

    Attributes:
        checkpoints: where unfinished training is kept; None for nowhere.
        ranks: the processes that share the run.
    """

    checkpoints: Checkpoints | None = None
    ranks: Ranks = ONE

    def __init__(
        self,
        spec: RunSpec,
        dataset: Dataset,
        backbone: Backbone,
        data: dict[str, Encoded],
        method: Method,
        on_progress: Progress,
        stop: Stop,
        timed: bool,
        data_dir: Path | None = None,
    ) -> None:
        self.spec, self.dataset, self.backbone, self.data, self.method = spec, dataset, backbone, data, method
        self.on_progress, self.stop, self.timed = on_progress, stop, timed
        self.data_dir = data_dir
        self.checkpoint: RunCheckpoint | None = None

    def start(self, edit: Edit) -> Trainer:
        """Attach the method and make the optimiser.

        The random stream of the adapter depends on the method; that of the head does not.

        Raises:
            UserError: the texts are too long for the network, or the method's formula is not what it trains.
        """
        axes = self.spec.axes
        devices.seed("adapter", self.spec.method.name, *axes)
        self.method.attach(edit)
        longest = max(int(split.lengths.max()) for split in self.data.values())
        inserted, net = self.backbone.virtual_tokens, self.backbone.net
        prompt.check_positions(longest, inserted, net.config)
        if inserted and "test" in self.data:  # without a prompt, the session has checked the texts
            examples = {split: self.dataset.split(split) for split in self.data}
            texts = text_limits.read(
                self.dataset.name, self.spec.train.max_length, self.data, examples, self.backbone.tokenizer
            )
            text_limits.check(texts, limits.of(net, self.backbone.kind), inserted)
        self.counts = checked_counts(edit, self.method)
        devices.seed("head", *axes)
        self.backbone.reset_head()
        return Trainer.start(edit, self.method, self.spec.train, self.spec.backbone.dtype, self.ranks)

    def train(self, edit: Edit, clock: Clock) -> Fitted:
        """Attach and train. The random streams of dropout and of the batches' order do not depend on the method.

        Raises `Diverged`, `Abandoned` or `UserError`.
        """
        trainer = self.start(edit)
        pad = self.backbone.tokenizer.pad_token_id
        order, widest = self._order()
        self.probes = Probes(self.spec.probes, TrainedNetwork(edit, self.spec.backbone.dtype, self.data_dir))
        clock.within("evaluate", lambda: self.probes.measure(0))
        if self.checkpoints:
            self.checkpoint = self.checkpoints.of(self.spec.id, self.probes.points)
        devices.seed("dropout", *self.spec.axes, *self.ranks.stream)
        clock.lap("load")
        fitted = fit(
            trainer,
            (partial(batches.collate, self.data["train"], indices, pad) for indices in order),
            lambda step: clock.within("evaluate", lambda: self.validate(step)),
            self.better,
            tracked=widest,
            timed=self.timed,
            on_progress=self.on_progress,
            stop=self.stop,
            checkpoint=self.checkpoint,
        )
        clock.lap("train")
        self.method.finish(edit)
        clock.within("evaluate", lambda: self.probes.measure(fitted.checkpoint_step, last=True))
        return fitted

    def _order(self) -> tuple[Iterable[Array], int]:
        """The example indices of each batch, and the index of the batch whose step is tracked (the widest).

        There are as many batches as steps, or endlessly many under a limit of seconds.
        """
        lengths, t = self.data["train"].lengths, self.spec.train
        seed = devices.stream("order", *self.spec.axes)
        if t.seconds is None:
            order = batches.order(lengths, t.batch_size, t.steps, seed)
            return order, batches.widest(lengths, order)
        return batches.endless(lengths, t.batch_size, seed), batches.widest(
            lengths, batches.order(lengths, t.batch_size, batches.POOL, seed)
        )

    def amount_trained(self, fitted: Fitted) -> dict[str, Any]:
        """How much was trained: tokens without padding, and seconds of steps if these were limited."""
        lengths, t = self.data["train"].lengths, self.spec.train
        seen = batches.order(lengths, t.batch_size, fitted.stopped_at, devices.stream("order", *self.spec.axes))
        return {
            "tokens": sum(int(lengths[indices].sum()) for indices in seen),
            "seconds": None if t.seconds is None else fitted.seconds,
            "repeatable": t.seconds is None,
        }

    def validate(self, step: int) -> dict[str, float | None]:
        """The validation metrics after so many steps; probes measure then, too."""
        if step < self.spec.train.steps:  # the last weights are measured after the method's `finish`
            self.probes.measure(step)
        return self._scores("validation")[0]

    @property
    def selection_metric(self) -> str:
        """The metric that compares checkpoints and trials on the validation split.

        For generation it is perplexity, as answers are generated for the test split only.
        """
        return "perplexity" if self.dataset.kind == "generation" else self.dataset.metric

    def better(self, a: Any, b: Any) -> bool:
        """Whether validation `a` beats `b`; an undefined score loses."""
        name = self.selection_metric
        if a[name] is None or b[name] is None:
            return b[name] is None and a[name] is not None
        return a[name] > b[name] if metrics.direction(name) == "max" else a[name] < b[name]

    def describe(self, edit: Edit, fitted: Fitted, keep: Path | None) -> dict[str, Any]:
        """Sizes, costs and curves of the trained run; saves the adapter at `keep`, if given."""
        header = {"method": self.spec.method.name, "hyper": asdict(self.method), "backbone": self.backbone.fingerprint}
        state = edit.state()
        with scratch.folder() as folder:
            stored = adapter_file.save(folder / "adapter.safetensors", state, header)
        if keep is not None and self.ranks.is_first:
            header["base"] = self._base()  # not in the file that is measured: these names say nothing about the method
            adapter_file.save(keep, state, header)
            adapter_file.save_head(keep, self.backbone, header)
        steps = fitted.step_seconds
        return {
            "hyper": asdict(self.method),
            "parameters": {**self.counts, "stored_bytes": stored},
            "memory": fitted.memory,
            "time": {"step_seconds": timing.summary(steps), "source": "this run"} if steps else None,
            "curve": {"loss": fitted.losses, "validation": fitted.validation},
            "stopped_at": fitted.stopped_at,
            "trained": self.amount_trained(fitted),
            "checkpoint_step": fitted.checkpoint_step,
            **({"probes": self.probes.record()} if self.spec.probes else {}),
            **({"resumed": fitted.resumed} if fitted.resumed else {}),
            **({"checkpoint_left": why} if (why := self._checkpoint_left()) else {}),
        }

    def _checkpoint_left(self) -> str:
        """What went wrong with the run's checkpoint; empty if nothing did."""
        found = (self.checkpoint.left, self.checkpoint.unwritten) if self.checkpoint else ()
        return "; ".join(filter(None, found))

    def _base(self) -> dict[str, Any]:
        """What loads this backbone again, in addition to the weights' fingerprint."""
        b = self.spec.backbone
        labels = [str(name) for name in self.dataset.labels]
        model = {"model": b.model, "revision": b.pinned_revision, "roles": b.roles, "dtype": b.dtype}
        return {**model, "kind": self.dataset.kind, "labels": labels}

    def checkpoint_scores(self, fitted: Fitted) -> dict[str, Any]:
        """The validation metrics of the checkpoint that was kept."""
        at = next(v for v in fitted.validation if v["step"] == fitted.checkpoint_step)
        return {name: value for name, value in at.items() if name != "step"}

    def trial_scores(self, fitted: Fitted) -> dict[str, Any]:
        """What a tuning trial has in place of a test: its scores on the validation split, and limits of its values."""
        name, scores = self.selection_metric, self.checkpoint_scores(fitted)
        fields = registry.schema(type(self.method)).model_json_schema().get("properties", {})
        limits = {key: b for key in self.spec.space if (b := registry.bounds(fields.get(key, {})))}
        return {
            "metrics": {"validation": scores, "primary": name, "direction": metrics.direction(name)},
            **({"bounds": limits} if limits else {}),
        }

    def test(self, fitted: Fitted, clock: Clock) -> dict[str, Any]:
        """Scores and predictions on the test split, which is read once, after every choice is made."""
        self.on_progress({"phase": "test"})
        try:
            scores, values = clock.within("evaluate", lambda: self._scores("test"))
        except evaluate.NotFinite as error:
            raise Diverged(fitted.stopped_at, f"{error} on the test split,", fitted) from error
        examples = self.dataset.test
        generated = self.dataset.kind == "generation"
        body: dict[str, Any] = {
            "metrics": {
                "test": scores,
                "validation": self.checkpoint_scores(fitted),
                "primary": self.dataset.metric,
                "direction": metrics.direction(self.dataset.metric),
                "majority": metrics.majority(self.dataset).get(self.dataset.metric),
            },
            "predictions": {
                "ids": [e.id for e in examples],
                "values": values,
                "labels": [list(e.references) if generated else e.label for e in examples],
            },
        }
        if generated:
            body["samples"] = [
                {"prompt": e.text, "prediction": v, "reference": e.references[0]}
                for e, v in list(zip(examples, values, strict=True))[:KEPT_SAMPLES]
            ]
        return body

    def _scores(self, split: str) -> tuple[dict[str, float | None], list[Any]]:
        """The metrics on a split and the predictions; answers are generated for the test split only."""
        data, examples = self.data[split], getattr(self.dataset, split)
        size, dtype = eval_batch(self.spec), self.spec.backbone.dtype
        if self.dataset.kind != "generation":
            values = evaluate.predict(self.backbone, data, size, dtype, self._raise_if_stopped, self.ranks)
            labels = [e.label for e in examples]
            return {m: metrics.score(m, values, labels) for m in self.dataset.metrics}, values
        perplexity = evaluate.perplexity(self.backbone, data, size, dtype, self._raise_if_stopped, self.ranks)
        scores: dict[str, float | None] = {"perplexity": perplexity}
        if split != "test":
            return scores, []
        longest = self.data["train"].longest_answer
        values = evaluate.generate(self.backbone, data, size, dtype, longest, self._raise_if_stopped)
        references = [e.references for e in examples]
        for m in self.dataset.metrics:
            if m != "perplexity":
                scores[m] = metrics.score(m, values, references)
        return scores, values

    def _raise_if_stopped(self) -> None:
        if self.ranks.any(self.stop()):
            raise Abandoned("stopped on request while evaluating")


def checked_counts(edit: Edit, method: Method) -> dict[str, int]:
    """Return the parameter counts of an attached method.

    Raises:
        UserError: the method's formula is not what it trains.
    """
    counts, declared = edit.counts(), method.parameters(edit.backbone.sites)
    if declared != counts["trainable"]:
        raise UserError(
            f"{method.name}: parameters() says {declared:,} and {counts['trainable']:,} train; sizes and budgets would "
            "be wrong. Fix the formula or what attach() adds"
        )
    return counts


def eval_batch(spec: RunSpec) -> int:
    """Examples that are evaluated together."""
    return max(32, spec.train.batch_size)


class Clock:
    """Wall-clock seconds by phase: load, train, evaluate. An inner phase does not count for the outer one."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._inner = 0.0
        self._spent = {"load": 0.0, "train": 0.0, "evaluate": 0.0}

    def lap(self, phase: str) -> None:
        """Add the time since the last lap to a phase."""
        now = time.perf_counter()
        self._spent[phase] += now - self._last - self._inner
        self._last, self._inner = now, 0.0

    def within(self, phase: str, work: Callable[[], Any]) -> Any:
        """Do `work` as an inner phase, and return its result."""
        started = time.perf_counter()
        try:
            return work()
        finally:
            spent = time.perf_counter() - started
            self._spent[phase] += spent
            self._inner += spent

    def seconds(self, hide: bool) -> dict[str, float | None]:
        """Seconds in total and by phase; with `hide`, because other runs shared the machine, the phases are None."""
        parts = {k: None if hide else round(v, 4) for k, v in self._spent.items()}
        return {"total": round(time.perf_counter() - self._start, 4), **parts}
