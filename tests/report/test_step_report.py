"""The training step in reports: its interval, phases and operations shown where recorded, a dash where not."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import factories
import pytest

from peftbench.records import record
from peftbench.report.assemble import rows, text_table, write
from peftbench.report.tables import profile_text

LABELS = ("full", "lora")


def shown(tmp_path: Path, **changes: Any) -> dict[str, str]:
    """The report's tables by their names' ends."""
    factories.write_all(tmp_path, [*factories.grid(LABELS, seeds=1), factories.profile(LABELS, **changes)])
    written = write(tmp_path)
    return {
        p.name.removeprefix("quickstart--embedded_question_type"): p.read_text() for p in written if p.suffix != ".png"
    }


def cells(markdown: str, label: str) -> list[str]:
    line = next(line for line in markdown.splitlines() if line.startswith(f"| {label} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.slow
def test_a_step_is_shown_with_its_phases_tokens_operations_and_share(tmp_path: Path) -> None:
    files = shown(tmp_path, work=True)
    assert cells(files["--step.md"], "lora") == [
        "lora",
        "71.0 ± 1.8",
        "0.75× [0.72, 0.77]",
        "28.4",
        "28.4",
        "14.2",
        "4,507",
        "1.00",
        "2.00",
        "3.00",
        "0.04",
        "42 % [41, 43]",
    ]
    assert "0.75× [0.72, 0.77]" in cells(files[".md"], "lora")
    assert "<summary>The training step</summary>" in files["report.md"]
    assert "[0.72, 0.77]" in files["--step.tex"]
    (full, lora) = csv.DictReader(io.StringIO(files["--step.csv"]))
    assert (full["method"], lora["flops_total"], lora["step_ratio_high"]) == ("full", "3000000000", str(71 / 95 + 0.02))


@pytest.mark.slow
def test_records_from_before_the_split_keep_their_ratio_and_have_no_table_of_the_step(tmp_path: Path) -> None:
    files = shown(tmp_path)
    assert "--step.md" not in files
    assert "0.75 ± 0.01×" in cells(files[".md"], "lora")
    (_, lora) = rows(tmp_path)
    assert lora["step_ratio"] == 71 / 95
    for name in ("step_ratio_low", "step_ratio_high", "tokens_per_second", "flops_per_second", "product_share"):
        assert lora[name] is None
    assert lora["split_seconds"] == dict.fromkeys(("forward", "backward", "optimizer"))
    assert lora["flops"] == dict.fromkeys(("forward", "backward", "optimizer", "total"))


@pytest.mark.slow
def test_a_configuration_without_times_has_dashes_beside_others_that_have_them(tmp_path: Path) -> None:
    bodies = [*factories.grid((*LABELS, "ia3"), seeds=1), factories.profile(LABELS, work=True)]
    factories.write_all(tmp_path, bodies)
    table = next(p for p in write(tmp_path) if p.name.endswith("--step.md")).read_text()
    assert cells(table, "ia3") == ["ia3", *["—"] * 11]


@pytest.mark.slow
def test_the_terminals_table_still_fits(tmp_path: Path) -> None:
    shown(tmp_path, work=True)
    assert max(map(len, text_table(tmp_path).splitlines())) <= 120


def attempts(tmp_path: Path, **step_ms: float) -> tuple[str, list[dict[str, Any]]]:
    """What is printed of a second attempt at a pass, lora taking another time in it."""
    first = factories.profile(LABELS, work=True)
    second = factories.profile(LABELS, work=True, started="2026-01-02T00:00:00Z", step_ms=step_ms)
    factories.write_all(tmp_path, [first, second])
    records = record.read_all(tmp_path)
    new = max(records, key=lambda r: r.order)
    return profile_text.text(new, records), profile_text.rows([new], records)


def test_a_second_attempt_says_which_one_counts_and_that_the_ratios_agree(tmp_path: Path) -> None:
    text, told = attempts(tmp_path, lora=73.0)
    joined = " ".join(text.split())
    assert "This is attempt 2 of the same pass." in joined
    assert "overlap with that attempt's for 1 of 1." in joined
    assert [(r["method"], r["attempt"], r["counts"], r["step_seconds"]) for r in told] == [
        ("full", 2, False, 0.095),
        ("lora", 2, False, 0.073),
    ]


def test_ratios_that_do_not_agree_are_named(tmp_path: Path) -> None:
    text, _ = attempts(tmp_path, lora=90.0)
    assert "for 0 of 1; not those of lora." in " ".join(text.split())


def test_a_first_attempt_speaks_of_no_other(tmp_path: Path) -> None:
    path = record.write(tmp_path, factories.profile(LABELS, work=True))
    text = profile_text.text(record.read(path), record.read_all(tmp_path))
    assert "attempt" not in text
    assert max(map(len, text.splitlines())) <= 120
