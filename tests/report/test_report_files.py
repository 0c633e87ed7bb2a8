"""Files of a report: what a killed process left of them."""

from __future__ import annotations

import re
from pathlib import Path

from peftbench.records import scratch
from peftbench.report.write import files


def test_the_next_report_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    files.write(tmp_path / "report", [("figures/a.svg", b"whole")])
    owner = re.sub(r"-\d+-\d+-$", "-1-0-", scratch._owner())
    left = [tmp_path / "report" / f".{owner}ab.tmp", tmp_path / "report" / "figures" / f".{owner}ab.tmp"]
    for path in left:
        path.write_text("half")
    files.write(tmp_path / "report", [("figures/a.svg", b"whole")])
    assert not [path for path in left if path.exists()]
