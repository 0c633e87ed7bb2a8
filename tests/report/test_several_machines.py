"""Records of several kinds of machine in one set: times are compared within a kind, and each row's place is said."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import factories
import pytest

from peftbench.records import comparable, record
from peftbench.report import assemble
from peftbench.report.data import latencies, pooled_passes
from peftbench.report.data.collect import compare
from peftbench.report.data.comparison import Comparison, Entry
from peftbench.report.tables import profile_text

CPU = factories.ENV
GPU = {"name": "NVIDIA H100", "capability": "9.0", "cuda": "12.4"}
H100 = {**CPU, "device": "cuda", "gpu": GPU}
A100 = {**CPU, "device": "cuda", "gpu": {**GPU, "name": "NVIDIA A100"}}


def compared(folder: Path, *bodies: Mapping[str, Any]) -> Comparison:
    factories.write_all(folder, list(bodies))
    (one,) = compare(record.read_all(folder))
    return one


def entry(c: Comparison, label: str) -> Entry:
    return next(e for e in c.entries if e.label == label)


def step_ms(c: Comparison) -> dict[str, float | None]:
    return {e.label: e.times.step.median * 1e3 if e.times and e.times.step else None for e in c.entries}


def test_the_same_pass_on_two_machines_is_two_passes_and_a_table_has_one_of_them(tmp_path: Path) -> None:
    runs = factories.grid(["full", "lora"])
    here = [factories.profile(["full", "lora"], process=n, step_ms={"full": 95.0, "lora": 71.0}) for n in range(3)]
    there = [
        factories.profile(
            ["full", "lora"],
            process=n,
            step_ms={"full": 9.0, "lora": 8.0},
            env=H100,
            started=f"2026-01-01T0{n if n else 5}:30:00Z",  # partly before, partly after those of the first machine
        )
        for n in range(3)
    ]
    c = compared(tmp_path, *runs, *here, *there)
    passes = pooled_passes.counting(record.read_all(tmp_path))
    assert sorted((p.env.machine, p.processes) for p in passes) == [("NVIDIA H100", 3), ("a processor", 3)]
    shown = step_ms(c)
    assert shown in ({"full": 95.0, "lora": 71.0}, {"full": 9.0, "lora": 8.0})
    (other,) = (note for note in c.notes if note.startswith("Measured on "))
    assert ("lora 8.0 ms" in other) == (shown["lora"] == 71.0)


def test_a_table_has_the_times_of_the_kind_that_measured_the_most_rows(tmp_path: Path) -> None:
    c = compared(
        tmp_path,
        *factories.grid(["full", "lora", "ia3"]),
        *factories.grid(["dora"], env=H100),
        factories.profile(["full", "lora", "ia3"], step_ms={"full": 95.0, "lora": 71.0, "ia3": 63.0}),
        factories.profile(["full", "dora"], env=H100, step_ms={"full": 9.5, "dora": 13.3}, started="2026-01-02T00:00Z"),
    )
    assert step_ms(c) == pytest.approx({"full": 95.0, "lora": 71.0, "ia3": 63.0, "dora": None}, nan_ok=True)
    assert entry(c, "lora").times is not None
    notes = " ".join(c.notes)
    assert "Trained on NVIDIA H100: dora; a processor: full, lora, ia3." in notes
    assert "Here they are of a processor, 1 thread (Linux x86_64): full, lora, ia3." in notes
    assert "full 9.5 ms a step (0.10 × full), dora 13.3 ms a step (0.14 × full)." in notes


def test_seeds_of_a_row_on_two_machines_are_named(tmp_path: Path) -> None:
    bodies = [factories.run("lora", seed, env=H100 if seed else CPU) for seed in range(3)]
    c = compared(tmp_path, *bodies, *factories.grid(["full"]))
    assert "Trained on NVIDIA H100: lora (seeds 1, 2); a processor: full, lora (seed 0)." in c.notes


def test_three_neighbouring_seeds_or_more_are_one_range(tmp_path: Path) -> None:
    there = (0, 2, 3, 4, 7, 8)
    bodies = [factories.run("lora", seed, env=H100 if seed in there else CPU) for seed in range(9)]
    c = compared(tmp_path, *bodies, *factories.grid(["full"]))
    assert "Trained on NVIDIA H100: lora (seeds 0, 2 to 4, 7, 8); a processor: full, lora (seeds 1, 5, 6)." in c.notes


def test_one_kind_of_machine_needs_no_such_note(tmp_path: Path) -> None:
    newer = {**CPU, "python": "3.12.1"}
    c = compared(
        tmp_path, *factories.grid(["full"]), *factories.grid(["lora"], env=newer), factories.profile(["full", "lora"])
    )
    assert not [note for note in c.notes if note.startswith(("Trained on", "Measured on", "Times are compared"))]


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"python": "3.12.1"}, True),
        ({"packages": {"torch": "3.0"}}, True),
        ({"threads": 8}, False),
        ({"cpu": {"model": "another", "capability": "AVX2"}}, False),
        ({"platform": "Darwin arm64"}, False),
        ({"device": "mps"}, False),
    ],
)
def test_a_kind_is_the_machine_and_not_its_software(tmp_path: Path, changed: dict[str, Any], same: bool) -> None:
    factories.write_all(tmp_path, [factories.run("lora"), factories.run("lora", env={**CPU, **changed})])
    one, two = (comparable.machine_kind(r.env) for r in record.read_all(tmp_path))
    assert (one == two) == same


def test_two_gpus_of_one_machine_differ_by_their_model_and_not_by_threads(tmp_path: Path) -> None:
    envs = [H100, A100, {**H100, "threads": 8}]
    factories.write_all(tmp_path, [factories.run("lora", seed, env=env) for seed, env in enumerate(envs)])
    runs = [r for r in record.read_all(tmp_path) if isinstance(r, record.RunRecord)]
    kinds = [comparable.machine_kind(r.env) for r in sorted(runs, key=lambda r: r.spec.seed)]
    assert kinds[0] == kinds[2] != kinds[1]


def test_a_pass_that_failed_on_one_machine_and_finished_on_another_is_not_said_to_have_failed(tmp_path: Path) -> None:
    c = compared(
        tmp_path,
        *factories.grid(["full", "lora"]),
        factories.profile(["full", "lora"], env=H100, status="killed", reason="the node went down"),
        factories.profile(["full", "lora"]),
    )
    assert entry(c, "lora").times is not None
    assert "killed" not in " ".join(c.notes)


def with_lengths(body: dict[str, Any]) -> dict[str, Any]:
    """The pass with latencies by shape, which have tables of their own."""
    for row in body["rows"]:
        for at in row["latency"]:
            at["length"] = 17
    return body


def test_latencies_of_each_machine_are_tables_with_names_of_their_own(tmp_path: Path) -> None:
    passes = [factories.profile(["full", "lora"], env=env) for env in (CPU, H100, {**H100, "python": "3.12.1"})]
    factories.write_all(tmp_path, [*factories.grid(["full", "lora"]), *map(with_lengths, passes)])
    shown = latencies.of(record.read_all(tmp_path))
    assert len({p.slug for p in shown}) == len(shown) == 2, "one for each kind"
    assert all(p.profile.env.machine in p.title for p in shown)
    assert all(p.exists() for p in assemble.write(tmp_path))


def test_a_pass_is_held_against_the_first_one_on_its_own_kind_of_machine(tmp_path: Path) -> None:
    times = [("2026-01-01T01:00:00Z", CPU), ("2026-01-02T01:00:00Z", H100), ("2026-01-03T01:00:00Z", H100)]
    factories.write_all(
        tmp_path, [factories.profile(["full", "lora"], work=True, started=started, env=env) for started, env in times]
    )
    records = record.read_all(tmp_path)
    first, second, third = sorted((r for r in records if isinstance(r, record.ProfileRecord)), key=lambda r: r.order)
    texts = [
        "".join(profile_text.text(r, records).split()) for r in (first, second, third)
    ]  # names are broken in lines
    assert ["ofthesamepass" in text for text in texts] == [False, False, True]
    assert second.path.name in texts[2]
