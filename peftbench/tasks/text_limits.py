"""Whether a network can read a task's encoded texts: facts about the texts, compared with the network's limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from peftbench.errors import UserError
from peftbench.tasks.dataset import Example
from peftbench.tasks.tokens import Array, Encoded

SHOWN = 60  # characters of a text in a message


@dataclass(frozen=True)
class TextFacts:
    """Facts about encoded texts of all splits. Lengths are in tokens; `ROW_at` says in words where it is.

    Attributes:
        task: Name of the task.
        max_length: Number of tokens at which texts were truncated.
        mean: Mean length of a training example.
        largest_id: Largest token id.
        largest_id_at: Its row.
        largest_type: Largest segment number.
        longest: Longest text that the network reads at once; behind an encoder, the longest prompt.
        longest_prompt: Longest prompt that an answer is generated for; 0 if nothing is generated.
        median_prompt: Median length of these prompts, at which a profile pass times inference.
        longest_answer: Longest training answer, end included: so many tokens are generated.
        longest_decoded: Longest text of the decoder behind an encoder; 0 without one.
        odd_end: A text that does not hold the counted token as often as others, with both numbers; else "".
        padding: Id of the padding token.
    """

    task: str
    max_length: int
    mean: float
    largest_id: int
    largest_id_at: str
    largest_type: int
    longest: int
    longest_prompt: int = 0
    median_prompt: int = 0
    longest_answer: int = 0
    longest_decoded: int = 0
    odd_end: str = ""
    padding: int | None = None


def read(
    task: str,
    max_length: int,
    data: Mapping[str, Encoded],
    examples: Mapping[str, Sequence[Example]],
    tokenizer: Any,
    counted_token: int | None = None,
) -> TextFacts:
    """Collect the facts about encoded texts.

    Args:
        task: Name of the task.
        max_length: Number of tokens at which texts were truncated.
        data: Encoded splits by name, among them "train".
        examples: The examples of each split.
        tokenizer: The tokenizer.
        counted_token: Token that every text must hold equally often, if any; see `Limits`.
    """

    def at(split: str, row: int) -> str:
        return f"row {row + 1} of {split}, {examples[split][row].text[:SHOWN]!r}"

    train = data["train"]
    largest = {split: _largest(part) for split, part in data.items()}
    where = max(largest, key=lambda split: largest[split][0])
    id_, row = largest[where]
    id_at = at(where, row)
    if train.decoder_start is not None and train.decoder_start > id_:
        id_, id_at = train.decoder_start, "the configuration's decoder_start_token_id"
    types = [int(row.max()) for part in data.values() for row in part.types or ()]
    facts = {
        "largest_type": max(types, default=0),
        "longest": max(int(_read_at_once(part).max()) for part in data.values()),
        "odd_end": "" if counted_token is None else _odd_end(data, counted_token, at),
        "padding": tokenizer.pad_token_id,
    }
    if train.answer_start is not None:
        generated = data.get("test", train)
        assert generated.answer_start is not None  # all splits are of one kind
        facts["longest_prompt"] = int(generated.answer_start.max())
        facts["median_prompt"] = int(np.median(generated.answer_start))
        facts["longest_answer"] = int((train.lengths - train.answer_start).max())
        if train.decoder_start is not None:
            facts["longest_decoded"] = 1 + max(int((p.lengths - p.answer_start).max()) for p in data.values())
    return TextFacts(task, max_length, float(train.lengths.mean()), id_, id_at, **facts)


def check(facts: TextFacts, limits: Any, prompt: int = 0) -> None:
    """Check that a network can read texts, and write the longest answer behind the longest prompt.

    Args:
        facts: Facts about the texts.
        limits: The network's `backbones.limits.Limits`.
        prompt: Vectors of a prompt that a method inserts in each text.

    Raises:
        UserError: It cannot; the message has the numbers and the fix.
    """
    _check_ids(facts, limits)
    _check_end(facts, limits)
    _check_positions(facts, limits, prompt)


def check_timed(facts: TextFacts, limits: Any, lengths: Sequence[int], tokens: int) -> None:
    """Check that a network has positions for the texts that a profile pass times.

    Args:
        facts: Facts about the task's texts.
        limits: The network's `backbones.limits.Limits`.
        lengths: Tokens of the timed texts, besides the median of the task's own.
        tokens: Tokens that are generated after each, where the network generates.

    Raises:
        UserError: It has not.
    """
    longest = max(lengths, default=0)
    if limits.declared_positions is not None and longest > limits.declared_positions:
        raise UserError(
            f"a latency at {longest} tokens cannot be measured: this {limits.architecture} network has "
            f"{limits.declared_positions} positions; make the lengths of profile.latency at most that"
        )
    behind_encoder = facts.longest_decoded > 0
    room = limits.decoder_positions if behind_encoder else limits.positions
    before = 1 if behind_encoder else max(facts.median_prompt, longest)
    if room is not None and facts.median_prompt and before + tokens > room:
        raise UserError(
            f"task {facts.task}: {tokens} tokens after a text of {before} cannot be timed: this {limits.architecture} "
            f"network has {room} positions; make the lengths or the tokens of profile.latency smaller"
        )


def _largest(part: Encoded) -> tuple[int, int]:
    """Return the largest token id of a split, and its row."""
    ids = np.concatenate(part.ids)
    place = int(ids.argmax())
    return int(ids[place]), int(np.searchsorted(np.cumsum(part.lengths), place, side="right"))


def _read_at_once(part: Encoded) -> Array:
    """Return the tokens of each text as one pass of the network, or of its encoder, reads them."""
    if part.decoder_start is not None and part.answer_start is not None:
        return part.answer_start
    return part.lengths


def _odd_end(data: Mapping[str, Encoded], token: int, at: Callable[[str, int], str]) -> str:
    counts = {split: np.asarray([int((row == token).sum()) for row in part.ids]) for split, part in data.items()}
    everything = np.concatenate(list(counts.values()))
    usual = int(np.bincount(everything).argmax())
    if usual == 0:
        return f"{at('train', 0)}, holds it 0 times, and it must stand at the end of each"
    for split, many in counts.items():
        for row in np.flatnonzero(many != usual)[:1]:
            return f"{at(split, int(row))}, holds it {many[row]} times where others hold it {usual} times"
    return ""


def _check_ids(facts: TextFacts, limits: Any) -> None:
    name, rows = limits.architecture, limits.tokens
    ids = f"the embedding of this {name} network has {rows} rows, for ids 0 to {rows - 1}"
    if facts.largest_id >= limits.tokens:
        raise UserError(
            f"task {facts.task}: {facts.largest_id_at}, has the token id {facts.largest_id}, and {ids}. Save the "
            "network with an embedding of the tokenizer's size (resize_token_embeddings), or with its own tokenizer"
        )
    if facts.padding is None or facts.padding >= limits.tokens:
        raise UserError(
            f"the tokenizer pads with token {facts.padding}, and {ids}; set a pad_token that the network knows in "
            "tokenizer_config.json"
        )
    if limits.types is not None and facts.largest_type >= limits.types:
        raise UserError(
            f"task {facts.task}: the tokenizer numbers a second text {facts.largest_type}, and this "
            f"{name} network has {limits.types} segments (type_vocab_size); take token_type_ids out of "
            "the model_input_names in tokenizer_config.json"
        )


def _check_end(facts: TextFacts, limits: Any) -> None:
    token = limits.counted_token
    if facts.odd_end:
        raise UserError(
            f"task {facts.task}: this {limits.architecture} classifier reads a text at its end token, id {token}, "
            f"which all texts must hold equally often; {facts.odd_end}. Take the token out of the text, or use a "
            "tokenizer that ends each text with it once"
        )
    if token is not None and facts.padding == token:
        raise UserError(
            f"the tokenizer pads with token {token}, at which this {limits.architecture} classifier reads a text; set "
            "another pad_token in tokenizer_config.json"
        )


def _check_positions(facts: TextFacts, limits: Any, prompt: int) -> None:
    more = f" and a prompt of {prompt} vectors" if prompt else ""
    reader = limits.positions if not prompt or limits.positions is not None else limits.declared_positions
    for room, longest, most, what in (
        (reader, facts.longest, facts.max_length, "texts"),
        (limits.decoder_positions, facts.longest_decoded, facts.max_length if facts.longest_decoded else 0, "answers"),
    ):
        inserted = prompt if what == "texts" else 0
        if room is not None and longest + inserted > room:
            raise UserError(
                f"task {facts.task}: {what} of up to {longest} tokens{more} do not fit into the {room} positions of "
                f"this {limits.architecture} network; make max_length at most {room - inserted}"
            )
        if room is not None and most > room:
            raise UserError(
                f"task {facts.task}: max_length {most} is more than the {room} positions of this {limits.architecture} "
                f"network; make it at most {room}"
            )
    room = limits.decoder_positions if facts.longest_decoded else reader
    before = 1 if facts.longest_decoded else facts.longest_prompt + prompt
    if room is not None and before and before + facts.longest_answer - 1 > room:
        shorter = max(room - facts.longest_answer + 1 - prompt, (room - prompt) // 2 + 1)  # half of it may be answer
        raise UserError(
            f"task {facts.task}: a prompt of {facts.longest_prompt} tokens{more}, with an answer of up to "
            f"{facts.longest_answer} tokens (the longest of training), does not fit into the {room} positions of this "
            f"{limits.architecture} network; make max_length at most {shorter}"
        )
