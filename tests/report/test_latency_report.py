"""Latencies by shape in a report: tables and a figure from profile records, old records as before."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import factories
import pytest

from peftbench.records import record
from peftbench.report import assemble
from peftbench.report.data import latencies


def timed(ms: float) -> dict[str, Any]:
    return {"median": ms / 1e3, "iqr": ms / 1e5, "n": 20, "samples": []}


def timed_pass(ms: float, ratio: float | None) -> dict[str, Any]:
    told = None if ratio is None else {"median": ratio, "iqr": 0.02, "low": ratio - 0.01, "high": ratio + 0.01, "n": 20}
    return {**timed(ms), "p95": ms / 900, "ratio": told}


def cells(overhead: float, merges: bool, lengths: tuple[int, ...] = (32, 128)) -> list[dict[str, Any]]:
    """Two phases of two batches, at a usual length of 9 tokens and at `lengths`."""
    return [
        {
            "phase": phase,
            "batch": batch,
            "length": length,
            "typical": length == 9,
            "unmerged": timed_pass(4.0 * batch * overhead, overhead if overhead > 1 else None),
            "merged": timed_pass(4.0 * batch, 1.0) if merges else None,
        }
        for batch in (1, 32)
        for length in (9, *lengths)
        for phase in ("prefill", "decode")
    ]


def measured(lengths: tuple[int, ...] = (32, 128), **changes: Any) -> dict[str, Any]:
    body = factories.profile(["lora", "adapter"], **changes)
    for row, overhead in zip(body["rows"], (1.05, 1.25), strict=True):
        row["latency"] = cells(overhead, row["label"] == "lora", lengths)
        row["merge_seconds"] = timed(7.0) if row["label"] == "lora" else None
        row["switch_seconds"] = timed(0.5)
    return {**body, "base": {"latency": cells(1.0, False, lengths)}}


def test_a_pass_alone_makes_a_report_with_tables_and_a_figure(tmp_path):
    factories.write_all(tmp_path, [measured()])
    paths = [p for p in assemble.write(tmp_path) if p.name != "index.html"]
    slug = "quickstart--embedded_question_type--latency"
    assert sorted(p.name for p in paths[1:]) == [f"{slug}.{kind}" for kind in ("csv", "md", "png", "svg", "tex")]
    page = paths[0].read_text()
    assert all(f"({p.parent.name}/{p.name})" in page for p in paths[1:] if p.suffix != ".svg")
    (row,) = [
        line for line in page.splitlines() if line.startswith("| adapter") and "decode" in line and "32 × 128" in line
    ]
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "adapter", "decode", "32 × 128", "160.0", "177.8", "1.25× [1.24, 1.26]", "—", "—", "—", "20"
    ]  # fmt: skip


def test_the_figure_names_the_papers_numbers_as_another_scales_and_this_runs_model(tmp_path):
    factories.write_all(tmp_path, [measured()])
    svg = " ".join(_texts(next(p for p in assemble.write(tmp_path) if p.suffix == ".svg")))
    for words in ("GPT-2 medium", "+20.7 %", "+30.3 %", "minilm-l6", "other hardware", "lora, merged"):
        assert words in svg


def _texts(svg: Path) -> list[str]:
    """The figure's lines of text: drawn as paths, each with its words in a comment before it."""
    return re.findall(r"<!-- (.*?) -->", svg.read_text())


@pytest.mark.slow
def test_the_same_latencies_give_the_same_bytes(tmp_path):
    first = factories.write_all(tmp_path / "one", [measured()]) and assemble.write(tmp_path / "one")
    again = factories.write_all(tmp_path / "two", [measured()]) and assemble.write(tmp_path / "two")
    assert {p.name: p.read_bytes() for p in first} == {p.name: p.read_bytes() for p in again}


def test_without_lengths_asked_for_there_is_a_table_and_no_figure(tmp_path):
    factories.write_all(tmp_path, [measured(lengths=())])
    assert {p.suffix for p in assemble.write(tmp_path)} == {".md", ".html", ".csv", ".tex"}


def test_a_record_by_shape_fills_the_comparisons_columns_as_an_older_one_does(tmp_path):
    factories.write_all(tmp_path, [*factories.grid(["lora", "adapter"], seeds=1), measured()])
    rows = {r["method"]: r["latency_seconds"] for r in assemble.rows(tmp_path)}
    assert rows["lora"]["32"]["unmerged"] == 4.0 * 32 * 1.05 / 1e3
    assert (rows["lora"]["1"]["merged"], rows["adapter"]["1"]["merged"]) == (0.004, None)


def test_a_record_whose_lengths_are_not_known_has_no_table_by_shape():
    assert latencies.of([record.of("old.json", {**factories.profile(), "attempt": 1})]) == []


def test_rows_of_a_pass_alone_are_numbers_with_null_for_what_was_not_measured(tmp_path):
    factories.write_all(tmp_path, [measured()])
    (row,) = [
        r for r in assemble.rows(tmp_path)
        if (r["method"], r["phase"], r["batch"], r["length"]) == ("adapter", "prefill", 1, 32)
    ]  # fmt: skip
    assert (row["p50_seconds"], row["ratio"], row["merged_p50_seconds"]) == (0.005, 1.25, None)
    assert (row["switch_seconds"], row["merge_seconds"]) == (0.0005, None)
    text = assemble.text_table(tmp_path)
    assert "1.25× [1.24, 1.26]" in text
    assert max(map(len, text.splitlines())) <= 120
