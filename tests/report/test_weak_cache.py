"""The cache computes a result once per object and frees it with the object."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from weakref import ref

import factories

from peftbench.records import record
from peftbench.report.data import scores, verdicts
from peftbench.report.data.collect import compare
from peftbench.report.data.weak_cache import weak_cache


class Thing:
    pass


def test_an_object_is_asked_once_and_another_one_anew() -> None:
    asked = []

    @weak_cache
    def name(of: Thing) -> str:
        asked.append(id(of))
        return f"thing {len(asked)}"

    one, other = Thing(), Thing()
    assert [name(one), name(one), name(other), name(one)] == ["thing 1", "thing 1", "thing 2", "thing 1"]
    assert asked == [id(one), id(other)]


def test_what_is_known_of_a_comparison_is_computed_once_and_goes_with_it(tmp_path: Path) -> None:
    factories.write_all(tmp_path, [factories.run(label, seed) for label in ("full", "lora") for seed in range(3)])
    (c,) = compare(record.read_all(tmp_path))
    assert verdicts.of(c) is verdicts.of(c)
    assert scores.of(c) is scores.of(c)
    assert verdicts.of(replace(c, direction="min")) is not verdicts.of(c)
    gone = ref(c)
    del c
    gc.collect()
    assert gone() is None
