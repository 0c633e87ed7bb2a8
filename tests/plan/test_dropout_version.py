"""Whose dropout masks a run has: the newest where its network drops anything on its own, torch's elsewhere."""

from __future__ import annotations

from pathlib import Path

import planning
import pytest

from peftbench.errors import UserError
from peftbench.records import comparable
from peftbench.records.spec import DROPOUT_VERSION, RunSpec, as_dict

FILE = """\
name: tiny
backbone: {backbone}
tasks: [{{task: {task}, rows: 60}}]
budget: {{steps: 3, max_length: 16, batch_size: 4}}
profile: false
methods: [lora]
reference: lora
"""


def planned(tmp_path: Path, more: str = "", backbone: str = "tiny-encoder") -> RunSpec:
    task = "synthetic/generation" if backbone == "tiny-decoder" else "synthetic/classification"
    path = tmp_path / "e.yaml"
    path.write_text(f"{FILE.format(backbone=backbone, task=task)}{more}\n")
    return planning.prepared(path).planned[0].spec


@pytest.mark.parametrize(
    ("more", "backbone", "version"),
    [
        ("", "tiny-encoder", DROPOUT_VERSION),
        ("backbone_dropout: 0.2", "tiny-encoder", DROPOUT_VERSION),
        ("dropout_version: 2", "tiny-encoder", 2),
        ("dropout_version: 1", "tiny-encoder", 1),
        ("backbone_dropout: 0.0", "tiny-encoder", 1),
        ("dropout_version: 2\nbackbone_dropout: 0.0", "tiny-encoder", 1),
        ("compile: true", "tiny-encoder", 1),
        ("", "tiny-decoder", 1),
        ("backbone_dropout: 0.2", "tiny-decoder", DROPOUT_VERSION),
    ],
)
def test_a_network_with_dropout_has_the_newest_masks_unless_the_file_or_a_compiler_says_otherwise(
    tmp_path: Path, more: str, backbone: str, version: int
) -> None:
    assert planned(tmp_path, more, backbone).backbone.dropout_version == version


def test_own_masks_for_a_compiled_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dropout_version.*give 1, or leave out compile"):
        planned(tmp_path, "dropout_version: 2\ncompile: true")


def test_a_version_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dropout_version"):
        planned(tmp_path, "dropout_version: 3")


def test_the_first_version_is_no_part_of_an_identity_so_that_older_records_keep_theirs(tmp_path: Path) -> None:
    first = planned(tmp_path, "dropout_version: 1")
    older = as_dict(first)
    del older["backbone"]["dropout_version"]
    assert RunSpec.from_dict(older).id == first.id != planned(tmp_path).id


def test_runs_of_two_versions_are_not_compared(tmp_path: Path) -> None:
    found = comparable.differences(planned(tmp_path), planned(tmp_path, "dropout_version: 1"))
    assert [str(d) for d in found] == ["dropout_version: 1 there, 2 here"]
