"""A design in a record may come from anybody: one that no file can ask is set aside by its field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import factories
import msgspec
import pytest
from test_hostile import edits, put, told

from peftbench.plan import limits
from peftbench.plan.experiment import SeedsSection
from peftbench.records import ranges
from peftbench.records.design import Design

PLAIN: dict[str, Any] = {"margin": 0.02, "prefer": "memory", "looks": [], "spending": "pocock", "claims": []}
CLAIM = {"method": "lora", "against": "full", "relation": None, "task": None}


def with_design(asked: Any) -> dict[str, Any]:
    body = factories.run() | {"attempt": 1, "schema": 2, "overrides": [], "design": asked}
    return edits.with_ids(body)


def test_a_design_that_a_file_can_ask_is_read(tmp_path: Path) -> None:
    put(tmp_path, with_design({**PLAIN, "looks": [2, 3, 10_000], "claims": [CLAIM]}))
    assert (len(told(tmp_path)[0]), told(tmp_path)[1]) == (1, [])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"looks": [3, 2]}, "design: looks must ascend"),
        ({"looks": [3, 3]}, "design: looks must ascend"),
        ({"looks": [1, 3]}, "design.looks[0]"),
        ({"looks": [3, 10**12]}, "design.looks[1]"),
        ({"looks": list(range(2, 2_000))}, "design.looks"),
        ({"margin": 0}, "design.margin"),
        ({"margin": 1e-200}, "design.margin"),
        ({"claims": [CLAIM, {**CLAIM, "against": "lora"}]}, "design.claims[1]: lora is compared with itself"),
        ({"claims": [{**CLAIM, "relation": "nicer"}]}, "design.claims[0].relation"),
        ({"claims": "lora"}, "design.claims"),
    ],
)
def test_a_design_that_no_file_can_ask_is_set_aside(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    put(tmp_path, with_design({**PLAIN, **change}))
    found, (warned,) = told(tmp_path)
    assert found == []
    assert said in warned


@pytest.mark.parametrize("asked", [[], "margin", 3])
def test_what_is_no_design_is_set_aside(asked: Any, tmp_path: Path) -> None:
    put(tmp_path, with_design(asked))
    assert "design" in told(tmp_path)[1][0]


def test_every_look_of_a_file_is_one_of_a_record() -> None:
    seeds = SeedsSection(least=2, most=limits.SEEDS)
    assert msgspec.convert({"looks": list(seeds.planned_looks)}, Design).looks == list(seeds.planned_looks)
    assert (limits.SEEDS, limits.LOOKS) == (ranges.SEEDS, ranges.LOOKS)
