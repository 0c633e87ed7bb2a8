"""One method on one network in memory, without an experiment: attach, train, predict, merge, save, undo."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from peftbench.backbones import devices, in_memory, limits
from peftbench.backbones.load import Backbone
from peftbench.backbones.networks import DTYPES
from peftbench.errors import UserError
from peftbench.method import adapter_file
from peftbench.method.base import Method
from peftbench.method.edit import Edit
from peftbench.method.registry import find, make
from peftbench.records.spec import TrainSpec
from peftbench.run import evaluate
from peftbench.run.train import Trainer, fit
from peftbench.tasks import batches, dataset, text_limits, tokens
from peftbench.tasks.tokens import Encoded

NAME = "in memory"  # the name in messages of texts that belong to no task


class Attached:
    """A network with a method's adapters in place; `peftbench.attach` makes it.

    Attributes:
        net: the transformers network, the same object that was given.
        method: the method with its hyperparameters.
        backbone: the network's sites, head and tokenizer.
    """

    def __init__(self, backbone: Backbone, method: Method, before: in_memory.Structure, seed: int) -> None:
        self.net, self.backbone, self.method = backbone.net, backbone, method
        self._before, self._seed = before, seed
        self._edit: Edit | None = Edit(backbone)
        self._merged: AbstractContextManager[nn.Module] | None = None
        backbone.save_snapshot()
        self._dtypes = {id(p): p.dtype for p in backbone.parameters.values()}
        devices.seed("adapter", method.name, seed)
        method.attach(self._edit)

    @classmethod
    def to(
        cls,
        method: str,
        net: Any,
        tokenizer: Any = None,
        hyper: Mapping[str, Any] | None = None,
        *,
        roles: Mapping[str, Any] | None = None,
        plugins: Sequence[Path] = (),
        seed: int = 0,
    ) -> Attached:
        """Attach a method by its name. Arguments and errors are those of `peftbench.attach`."""
        made = make(find(method, plugins), hyper or {}, where=method)
        in_memory.kind_of(net)
        if hasattr(net, _MARK):
            raise UserError("this network has a method attached already; call undo() on it first")
        before = in_memory.Structure(net)
        try:
            attached = cls(in_memory.wrap(net, tokenizer, roles), made, before, seed)
        except BaseException:
            before.restore()
            raise
        setattr(net, _MARK, True)
        return attached

    def __repr__(self) -> str:
        return f"Attached({self.method!r} to {type(self.net).__name__}, {self.counts['trainable']:,} trainable)"

    @property
    def counts(self) -> dict[str, int]:
        """Counts of parameters: `trainable` (the method's), `head`, `added` and `total`."""
        return self._now().counts()

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters for an optimiser of your own: the method's, then the task head's."""
        return [*self._now().trained(), *self.backbone.head_parameters()]

    def train(
        self,
        texts: Sequence[str],
        labels: Sequence[Any],
        *,
        pairs: Sequence[str] | None = None,
        steps: int = 100,
        lr: float | None = None,
        head_lr: float | None = None,
        batch_size: int = 16,
        max_length: int = 128,
        warmup: float = 0.06,
        weight_decay: float = 0.0,
        dtype: str = "float32",
    ) -> list[float]:
        """Train the method, and the task head if there is one, with the training loop of the benchmark.

        Another call goes on from the weights that this one leaves, with a new optimiser and schedule. Merged adapters
        are unmerged first.

        Args:
            texts: n texts; prompts for a causal or encoder-decoder model.
            labels: n class indices, numbers (for one output), or answers to generate.
            pairs: n second texts, for tasks with two.
            steps: optimiser steps.
            lr: peak learning rate; by default the method's own.
            head_lr: peak learning rate of the head; by default that of the method.
            batch_size: texts in each step.
            max_length: tokens of each text; the rest is cut off.
            warmup: fraction of the steps in which the rate rises from 0; then it falls linearly to 0.
            weight_decay: weight decay of matrices; other parameters have none.
            dtype: "float32", or "bfloat16" for autocast.

        Returns:
            The mean loss of each step.

        Raises:
            UserError: there is no tokenizer, texts and labels do not fit together, or a number is out of its range.
            peftbench.run.train.Diverged: the loss or a weight is not finite.
        """
        encoded = self._encoded(texts, labels, pairs, max_length)
        rate = type(self.method).lr if lr is None else lr
        _check_training(steps=steps, batch_size=batch_size, lr=rate, head_lr=head_lr, warmup=warmup, dtype=dtype)
        spec = TrainSpec(rate, steps, batch_size, max_length, head_lr=head_lr, warmup=warmup, weight_decay=weight_decay)
        self.unmerge()
        trainer = Trainer.start(self._now(), self.method, spec, dtype)
        order = batches.order(encoded.lengths, batch_size, steps, devices.stream("order", self._seed))
        pad = self.backbone.tokenizer.pad_token_id
        devices.seed("dropout", self._seed)
        made = (partial(batches.collate, encoded, indices, pad) for indices in order)
        fitted = fit(trainer, made, lambda _: {}, lambda a, b: False)
        self.method.finish(self._now())
        self.net.eval()
        return fitted.losses

    def predict(
        self,
        texts: Sequence[str],
        *,
        pairs: Sequence[str] | None = None,
        batch_size: int = 32,
        max_length: int = 128,
        new_tokens: int = 64,
        dtype: str = "float32",
    ) -> list[Any]:
        """Predict a class, a number or an answer for each text.

        Args:
            texts: n texts; prompts for a causal or encoder-decoder model.
            pairs: n second texts, for tasks with two.
            batch_size: texts in each batch.
            max_length: tokens of each text; the rest is cut off.
            new_tokens: most tokens of a generated answer; decoding is greedy.
            dtype: "float32", or "bfloat16" for autocast.

        Returns:
            n class indices, numbers, or generated answers.

        Raises:
            UserError: there is no tokenizer, or texts and pairs do not fit together.
        """
        self._now()
        generates = self.backbone.kind == "generation"
        encoded = self._encoded(texts, ["" if generates else 0] * len(texts), pairs, max_length, new_tokens)
        if generates:
            return list(evaluate.generate(self.backbone, encoded, batch_size, dtype, new_tokens))
        return evaluate.predict(self.backbone, encoded, batch_size, dtype)

    @contextmanager
    def merged(self) -> Iterator[nn.Module]:
        """Merge the adapters into plain layers within the `with` block.

        Yields:
            The network without adapters.

        Raises:
            NotMergeable: the method cannot be merged, because it is not a linear map.
        """
        with self._now().merged() as net:
            yield net

    def merge(self) -> None:
        """Merge the adapters into plain layers until `unmerge`.

        Raises:
            NotMergeable: the method cannot be merged, because it is not a linear map.
        """
        if self._merged is None:
            merged = self._now().merged()
            merged.__enter__()
            self._merged = merged

    def unmerge(self) -> None:
        """Undo `merge` exactly, because merged layers are copies. It does nothing if nothing is merged."""
        if self._merged is not None:
            self._merged.__exit__(None, None, None)
            self._merged = None

    def state(self) -> dict[str, Tensor]:
        """Return the method's tensors by the paths of their sites, without the head."""
        return self._now().state()

    def save(self, path: str | Path) -> Path:
        """Save the adapter as safetensors, and the head in a second file next to it.

        Args:
            path: the adapter's file, which `load` and `peftbench export` read.

        Returns:
            The path.
        """
        header = {
            "method": self.method.name,
            "hyper": asdict(self.method),
            "backbone": self._fingerprint(),
        }
        adapter_file.save(Path(path), self.state(), header)
        if self.backbone.head:
            adapter_file.save_head(Path(path), self.backbone, header)
        return Path(path)

    def load(self, path: str | Path) -> None:
        """Load an adapter that was saved from the same method and network, and its head if there is one.

        Raises:
            UserError: the file is no such adapter.
        """
        state, header = adapter_file.load(Path(path))
        if header["method"] != self.method.name:
            raise UserError(f"{path} holds an adapter of {header['method']}, and {self.method.name} is attached here")
        if header["backbone"] != self._fingerprint():
            raise UserError(f"{path} was trained on another network; attach to the weights that it was trained on")
        self.method.finish(self._now())  # the saved tensors are those after `finish`
        self._now().load(state)
        if self.backbone.head and adapter_file.head_path(Path(path)).exists():
            adapter_file.load_head(Path(path), self.backbone)

    def undo(self) -> None:
        """Detach the method and restore every module and weight of the given network bit for bit, the head included."""
        self.unmerge()
        edit = self._now()
        edit.undo()
        for name, p in self.backbone.parameters.items():
            if id(p) in {id(h) for h in self.backbone.head_parameters()}:
                p.data = self.backbone.pristine(name).to(self.backbone.device, self._dtypes[id(p)])
                p.grad = None
        self._before.restore()
        delattr(self.net, _MARK)
        self._edit = None

    def _now(self) -> Edit:
        """Return the edit; raise UserError after `undo`."""
        if self._edit is None:
            raise UserError("the method was taken off by undo(); attach it again")
        return self._edit

    def _encoded(
        self,
        texts: Sequence[str],
        labels: Sequence[Any],
        pairs: Sequence[str] | None,
        max_length: int,
        new_tokens: int = 0,
    ) -> Encoded:
        """Check texts and labels, convert them to tokens, and check that the network can read these."""
        b = self.backbone
        if b.tokenizer is None:
            raise UserError("texts need the network's tokenizer; give it to attach(method, model, tokenizer)")
        if len(texts) == 0 or len(texts) != len(labels) or (pairs is not None and len(pairs) != len(texts)):
            many = "" if pairs is None else f" and {len(pairs)} pairs"
            raise UserError(f"given {len(texts)} texts, {len(labels)} labels{many}; give as many of each, at least one")
        labels = [y.item() if hasattr(y, "item") else y for y in labels]  # numbers of numpy and torch
        if wrong := [t for t in (*texts, *(pairs or ())) if not isinstance(t, str)]:
            raise UserError(f"given {wrong[0]!r} among the texts; give each as a str")
        if b.kind == "classification" and (wrong := [y for y in labels if y not in range(b.net.config.num_labels)]):
            raise UserError(f"class {wrong[0]!r}: this head has {b.net.config.num_labels} classes, counted from 0")
        if b.tokenizer.pad_token is None:
            b.tokenizer.pad_token = b.tokenizer.eos_token or b.tokenizer.unk_token
        if b.net.config.pad_token_id is None:
            b.net.config.pad_token_id = b.tokenizer.pad_token_id
        generates = b.kind == "generation"
        examples = [
            dataset.example(
                text,
                None if pairs is None else pairs[i],
                None if generates else labels[i],
                [str(labels[i])] if generates else (),
            )
            for i, text in enumerate(texts)
        ]
        encoded = tokens.encode_examples(NAME, b.kind, examples, b.tokenizer, max_length, b.decoder_start)
        known = limits.of(b.net, b.kind)
        facts = text_limits.read(NAME, 0, {"train": encoded}, {"train": examples}, b.tokenizer, known.counted_token)
        text_limits.check(replace(facts, longest_answer=new_tokens), known, b.virtual_tokens)
        return encoded

    def _fingerprint(self) -> str:
        """Return the fingerprint of the given weights, before training."""
        if not self.backbone.fingerprint:
            self.backbone.fingerprint = in_memory.fingerprint_of(
                {name: self.backbone.pristine(name) for name in self.backbone.parameters}
            )
        return self.backbone.fingerprint


def _check_training(
    *, steps: int, batch_size: int, lr: float, head_lr: float | None, warmup: float, dtype: str
) -> None:
    """Raise UserError for the first number that no training can have."""
    for name, value, fits, valid in (
        ("steps", steps, steps >= 1, "at least 1"),
        ("batch_size", batch_size, batch_size >= 1, "at least 1"),
        ("lr", lr, 0 < lr < math.inf, "a positive number"),
        ("head_lr", head_lr, head_lr is None or 0 < head_lr < math.inf, "a positive number, or None"),
        ("warmup", warmup, 0 <= warmup <= 1, "a fraction from 0 to 1"),
        ("dtype", dtype, dtype in DTYPES, " or ".join(DTYPES)),
    ):
        if not fits:
            raise UserError(f"{name}: given {value!r}; must be {valid}")


_MARK = "_peftbench_attached"  # on a network that has a method attached
