"""A step of transformers' Trainer itself, with real tensors on the CPU, under the memory tracker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import real_programs
from transformers import Trainer, TrainerCallback, TrainingArguments

from peftbench.estimate.program.programs import Program
from peftbench.estimate.simulate.timeline import TimelineTracker


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Opens the tracker for the second step."""

    trainer: Any
    live: TimelineTracker | None = None
    is_open = False

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 1:
            net = self.trainer.model
            self.live = TimelineTracker(real_programs.groups(net), self.trainer.optimizer.optimizer)
            self.live.__enter__()
            self.is_open = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.is_open and self.live is not None:
            self.live.__exit__(None, None, None)
            self.is_open = False


class _Watched(Trainer):  # type: ignore[misc]
    watch: _Watch

    def phase(self, name: str) -> None:
        if self.watch.is_open and self.watch.live is not None:
            self.watch.live.phase(name)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        usual = self.accelerator.backward

        def backward(*args: Any, **kwargs: Any) -> None:
            self.phase("backward")
            usual(*args, **kwargs)

        self.accelerator.backward = backward
        try:
            return super().training_step(*args, **kwargs)
        finally:
            self.accelerator.backward = usual
            self.phase("optimizer")


def measured(net: Any, own: Program, padded: bool, folder: Path) -> TimelineTracker:
    """Return the tracker of the second of two steps."""
    texts = []
    for _ in range(2):
        batch = real_programs.batch_of(padded)
        texts += [{key: values[i] for key, values in batch.items()} for i in range(len(batch["input_ids"]))]
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        bf16=True,
        max_steps=2,
        per_device_train_batch_size=real_programs.BATCH,
        gradient_checkpointing=own.checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        train_sampling_strategy="sequential",
    )
    watch = _Watch()
    trainer = _Watched(net, arguments, train_dataset=texts, callbacks=[watch])
    trainer.watch, watch.trainer = watch, trainer
    with real_programs.kernels(own):
        trainer.train()
    assert watch.live is not None
    return watch.live
