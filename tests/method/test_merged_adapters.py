"""In a merged set, the record of each machine leads to the adapter that its own attempt trained."""

from __future__ import annotations

from pathlib import Path

import factories

from peftbench.method import adapter_file
from peftbench.method.interop import trained_adapter
from peftbench.records import merging, record
from peftbench.records.spec import RunSpec

OTHER = {**factories.ENV, "python": "3.12.1"}


def test_each_record_leads_to_the_adapter_of_its_own_attempt(tmp_path: Path) -> None:
    for folder, env in (("a", factories.ENV), ("b", OTHER)):
        factories.write_all(tmp_path / folder, [factories.run("lora", env=env)])
        (one,) = record.read_all(tmp_path / folder)
        assert isinstance(one.spec, RunSpec)
        kept = tmp_path / folder / merging.ADAPTERS / adapter_file.name(one.spec)
        kept.parent.mkdir()
        kept.write_text(folder)
    merging.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    found = {r.env.python: trained_adapter._file(r.path).read_text() for r in record.read_all(tmp_path / "all")}
    assert found == {factories.ENV["python"]: "a", "3.12.1": "b"}
