"""How much a language model forgets: its answers to school questions (after arXiv:2405.09673)."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

import torch

from peftbench.backbones.losses import IGNORED, loss_sum
from peftbench.measure.probes import CARDS, TrainedNetwork, file_of, language_model
from peftbench.tasks.tokenizing import called

CARD = CARDS["arc_easy"]
QUESTIONS = 128
BATCH = 32  # answers


@dataclass(frozen=True)
class Question:
    """A question, its possible answers, and the place of the right one."""

    text: str
    answers: tuple[str, ...]
    right: int


@torch.inference_mode()
def measure(trained: TrainedNetwork) -> dict[str, Any]:
    """Measure the accuracy on ARC-Easy without an example.

    Returns:
        "accuracy": share of questions whose right answer has the highest log probability divided by its bytes.
        "right": for each question whether it is so. "sha256": hash of the file.

    Raises:
        UserError: The network is not a causal language model, or the questions are missing.
    """
    backbone = language_model(CARD, trained)
    text = file_of(CARD, trained.data_dir).read_bytes()
    asked = chosen(questions(text.decode("utf-8")))
    rows = [row(backbone.tokenizer, q.text, answer) for q in asked for answer in q.answers]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))  # little padding
    backbone.net.eval()
    losses = [0.0] * len(rows)
    for places in (order[i : i + BATCH] for i in range(0, len(order), BATCH)):
        longest = max(len(rows[i][0]) for i in places)
        ids = torch.zeros(len(places), longest, dtype=torch.int64)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
        for k, i in enumerate(places):
            tokens, start = rows[i]
            ids[k, : len(tokens)], mask[k, : len(tokens)] = torch.tensor(tokens), 1
            labels[k, start : len(tokens)] = ids[k, start : len(tokens)]
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        inputs = backbone.inputs({name: t.to(backbone.device) for name, t in batch.items()})
        labels = inputs.pop("labels")
        with backbone.computing(trained.dtype):
            logits = backbone.net(**inputs).logits
        # From the answer on: float32 rows over the whole vocabulary, each longer than the last, would scatter the heap.
        starts = [rows[i][1] - 1 for i in places]  # a method's prompt moves it further back: too early loses nothing
        told = [loss_sum("generation", logits[k : k + 1, s:], labels[k : k + 1, s:]) for k, s in enumerate(starts)]
        for i, loss in zip(places, torch.stack(told).tolist(), strict=True):
            losses[i] = loss
    of_answers = iter(losses)
    right = [best([next(of_answers) for _ in q.answers], q.answers) == q.right for q in asked]
    return {
        "accuracy": sum(right) / len(right),
        "right": [int(r) for r in right],
        "sha256": hashlib.sha256(text).hexdigest(),
    }


def questions(text: str) -> list[Question]:
    """Read the questions from a file in the form of LLM-Adapters (arXiv:2304.01933).

    Raises:
        ValueError: An entry has another form.
    """
    found = []
    for entry in json.loads(text):
        body = entry["instruction"].removeprefix("Please choose the correct answer to the question: ")
        question, *answers = re.split(r"\s+Answer[1-5]: ", body.rpartition("\n\nAnswer format:")[0])
        right = re.fullmatch(r"answer([1-5])", entry["answer"])
        if right is None or not 0 < int(right[1]) <= len(answers):
            raise ValueError(f"not a question of ARC-Easy: {entry}")
        found.append(Question(question.strip(), tuple(a.strip() for a in answers), int(right[1]) - 1))
    return found


def chosen(found: list[Question]) -> list[Question]:
    """Return `QUESTIONS` of them at equal distances, or all of fewer."""
    n = min(QUESTIONS, len(found))
    return [found[k * len(found) // n] for k in range(n)]


def row(tokenizer: Any, question: str, answer: str) -> tuple[list[int], int]:
    """Return the tokens of a question with an answer, and where those of the answer begin."""
    asked, said = (
        called(tokenizer, text, add_special_tokens=False, verbose=False)["input_ids"]
        for text in (f"Question: {question}\nAnswer:", f" {answer}")
    )
    return [*asked, *said], len(asked)


def best(losses: list[float], answers: tuple[str, ...]) -> int:
    """Return the place of the answer with the least loss for its UTF-8 bytes."""
    per_byte = [loss / len(answer.encode()) for loss, answer in zip(losses, answers, strict=True)]
    return per_byte.index(min(per_byte))
