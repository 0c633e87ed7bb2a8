"""What reports compute and write without scipy.stats, pandas and seaborn is what these would give."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import factories
import numpy as np
import pandas as pd
import pytest
import seaborn as sns
from matplotlib import rcParamsDefault
from scipy.stats import rankdata, studentized_range

from peftbench.report.figures.style import STYLE
from peftbench.report.stats import ranks
from peftbench.report.tables import columns

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("k", [2, 3, 8, 19, 60])
def test_the_quantile_of_the_studentized_range_is_that_of_scipy(k: int) -> None:
    for level in (0.9, 0.95, 0.99):
        assert ranks.range_quantile(level, k) == pytest.approx(studentized_range.ppf(level, k, math.inf), rel=1e-9)


def test_tied_configurations_share_the_mean_of_their_ranks_as_in_scipy() -> None:
    scores = np.random.RandomState(0).randint(0, 4, (50, 7)).astype(float)
    assert (ranks._ranked(scores) == rankdata(-scores, axis=1)).all()


def test_a_csv_file_is_what_pandas_writes() -> None:
    rows = [
        {"name": 'a, "b"', "n": 3, "x": 0.1 + 0.2, "none": None, "nan": math.nan, "yes": True, "big": 1e22},
        {"name": "ü; c", "n": -1, "x": 1e-7, "none": "", "nan": 2.0, "yes": False, "big": np.float64(0.5)},
    ]
    frame = pd.DataFrame([list(r.values()) for r in rows], columns=list(rows[0]), dtype=object)
    assert columns.csv(rows) == frame.to_csv(index=False, lineterminator="\n")


def test_a_latex_table_has_the_lines_that_pandas_writes() -> None:
    shown = [columns.Column("method", lambda r: r[0]), columns.Column("score", lambda r: r[1])]
    rows = [("lora & co", "0.5"), ("full_1", "0.25")]
    cells = [[r"lora \& co", "0.5"], [r"full\_1", "0.25"]]
    frame = pd.DataFrame(cells, columns=["method", "score"])
    expected = frame.to_latex(index=False, escape=False, column_format="lr").rstrip()
    assert expected in columns.latex(shown, rows, "caption", "label")


def test_figures_have_the_style_that_seaborn_calls_whitegrid_in_its_notebook_size() -> None:
    wanted = {**sns.axes_style("whitegrid"), **sns.plotting_context("notebook", font_scale=0.85)}
    own = ("axes.spines.", "axes.edgecolor", "axes.linewidth", "grid.", "text.color", "axes.labelcolor")
    own = (*own, "xtick.color", "ytick.color", "image.cmap")
    kept = {k: v for k, v in wanted.items() if not k.startswith(own)}
    assert {k: {**rcParamsDefault, **STYLE}[k] for k in kept} == kept


@pytest.mark.slow
def test_a_report_is_written_without_the_libraries_that_take_long_to_import(tmp_path: Path) -> None:
    factories.write_all(tmp_path, [factories.run(m, seed) for m in ("lora", "full") for seed in (0, 1)])
    heavy = "{'torch', 'pandas', 'seaborn', 'scipy.stats', 'fontTools.subset'}"
    code = (
        "import sys\nfrom peftbench.report import assemble\nassemble.write(sys.argv[1])\n"
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    paths = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.check_output([sys.executable, "-c", code, str(tmp_path)], env=paths, text=True)
    assert done.strip() == "[]"
