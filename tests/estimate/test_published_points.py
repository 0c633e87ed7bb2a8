"""The registry of published measurements is read strictly, and its points are those of the sources."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peftbench.backbones import architectures
from peftbench.errors import UserError
from peftbench.estimate.published import published_points as published
from peftbench.method.catalogue import Catalogue

POINTS = published.points()
BY_ID = {point.id: point for point in POINTS}
PREDICTED = [point for point in POINTS if not point.left_out]
FILE = """
group: X
title: a source
source: "somewhere, README"
commit: abc1
date: 2026-01
licence: MIT
measure: allocated
unit: GB
gpu: A100
program: plain
about: One step.
parts: {weights: bfloat16}
points:
  - {id: X1, model: llama-3.2-1b, method: lora, hyper: {rank: 16, roles: q k v o}, batch: 1, seq: 2048, value: 10}
"""


def read(folder: Path, text: str) -> list[published.PublishedPoint]:
    path = folder / "x.yaml"
    path.write_text(text)
    return published.read(path)


def test_each_group_has_the_points_of_its_sources() -> None:
    counts = {"A": 21, "F": 5, "H": 57, "I": 7, "L": 35, "P": 57, "Q": 66, "R": 29, "S": 69, "T": 22, "U": 7, "V": 19}
    assert Counter(point.group for point in POINTS) == counts


def test_values_are_those_printed_in_the_sources() -> None:
    assert (BY_ID["V12"].model, BY_ID["V12"].value_bytes) == ("llama-3.1-8b", 20_550_000_000)
    assert (BY_ID["F3"].hyper["roles"], BY_ID["F3"].value_bytes) == ("q k v o gate up down", round(24.7 * 2**30))
    assert (BY_ID["R14"].batch, BY_ID["R14"].seq, BY_ID["R14"].value) == (2, 1304, 29.07)
    assert abs(BY_ID["H31"].value_bytes - 6_924_458_000) < 1_000_000


def test_ids_begin_with_the_group_and_tell_the_points_apart() -> None:
    assert len(BY_ID) == len(POINTS)
    assert all(point.id.startswith(point.group) and point.id[1:].isdecimal() for point in POINTS)


def test_every_size_is_one_that_a_few_gpus_have() -> None:
    for point in POINTS:
        if point.unit == "tokens":
            assert 100 < point.value < 100_000, point.id
        else:
            assert 10**9 < point.value_bytes < 82 * 2**30, point.id


def test_each_method_that_is_predicted_takes_the_hyperparameters_of_its_points() -> None:
    catalogue = Catalogue()
    for point in PREDICTED:
        assert catalogue.hyper(point.method, point.hyper).items() >= point.hyper.items(), point.id


def test_each_model_that_is_predicted_is_known_or_to_come() -> None:
    assert {point.model for point in PREDICTED} <= set(architectures.known())


def test_a_method_that_exists_here_is_left_out_for_another_reason_than_its_name() -> None:
    names = set(Catalogue().methods())
    wrong = [p.id for p in POINTS if p.left_out == "no such method here" and p.method in names]
    assert not wrong


def test_parts_of_a_point_replace_those_of_its_file() -> None:
    assert BY_ID["V4"].parts["weights"] == "float32"
    assert BY_ID["V4"].parts["update"] == "foreach"
    assert BY_ID["V1"].parts["weights"] == "bfloat16"


def test_4_bit_layers_of_old_bitsandbytes_keep_their_inputs() -> None:
    """bitsandbytes keeps them before July 2024; the sources of L, R, I, A and S are older, U and F are younger."""
    kept = {point.group for point in PREDICTED if point.parts.get("quantised_inputs", "freed") != "freed"}
    others = {point.group for point in PREDICTED if point.method == "qlora" and "quantised_inputs" not in point.parts}
    assert kept == {"A", "I", "L", "R", "S"}
    assert others == {"F", "T", "U"}  # torchtune has 4-bit layers of its own


def test_the_command_of_a_point_holds_its_settings() -> None:
    words = shlex.split(published.command(BY_ID["V10"]))
    assert words[:4] == ["peftbench", "estimate", "llama-3.2-1b", "lora"]
    assert "roles=q k v o" in words
    assert words[words.index("--seq") + 1] == "2048"
    assert words[words.index("--program") + 1] == "plain"
    assert "checkpointing=true" in words


def test_the_command_of_a_longest_context_asks_what_fits() -> None:
    words = shlex.split(published.command(BY_ID["U3"]))
    assert words[words.index("--fit") + 1 : words.index("--fit") + 4] == ["24GB", "--fit-axis", "seq"]
    assert "--seq" not in words


def test_the_command_of_two_devices_names_them() -> None:
    assert "--shards 2" in published.command(replace(BY_ID["A1"], left_out=""))
    assert "--shards" not in published.command(BY_ID["A11"])


def test_a_point_left_out_has_no_command() -> None:
    with pytest.raises(ValueError, match="inference"):
        published.command(BY_ID["V14"])


def test_a_file_of_the_documented_form_is_read(tmp_path: Path) -> None:
    (point,) = read(tmp_path, FILE)
    assert (point.version, point.hyper, point.left_out) == ("abc1", {"rank": 16, "roles": "q k v o"}, "")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("licence: MIT", "license: MIT", r"unknown key 'license'; did you mean 'licence'\?"),
        ("licence: MIT", "", "licence.*give a text"),
        ("commit: abc1", "", "version.*give a text"),
        ("measure: allocated", "measure: alocated", "did you mean 'allocated'.*reserved"),
        ("unit: GB", "unit: gb", "unknown unit 'gb'.*GiB"),
        ("program: plain", "program: plane", "did you mean 'plain'.*litgpt"),
        ("weights: bfloat16", "weight: bfloat16", "unknown key 'weight'; did you mean 'weights'.*checkpointing"),
        ("weights: bfloat16", "weights: float16", "unknown weights 'float16'.*bfloat16, float32"),
        ("weights: bfloat16", "clip: 1", "unknown clip '1'"),
        ("weights: bfloat16", "shards: 0", "whole number from 1"),
        ("batch: 1", "batch: 0", "whole number from 1"),
        ("batch: 1", "batsch: 1", "did you mean 'batch'"),
        ("value: 10", "value: -10", "above 0"),
        ("value: 10", "value: nothing", "above 0"),
        ("unit: GB", "unit: tokens", "longest_context counts tokens"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_what_is_valid(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in FILE
    with pytest.raises(UserError, match=f"(?s)x.yaml.*{message}"):
        read(tmp_path, FILE.replace(old, new))


def test_an_id_of_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(FILE)
    with pytest.raises(UserError, match="X1 is given twice"):
        published.points(tmp_path)


def test_tokens_have_no_bytes() -> None:
    with pytest.raises(ValueError, match="tokens"):
        _: Any = BY_ID["U1"].value_bytes
