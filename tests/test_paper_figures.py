"""The papers' figures: verdicts follow the records, nothing else does, and the same records give the same bytes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import run, write_all
from typer.testing import CliRunner

from peftbench import spec
from peftbench.cli import app
from peftbench.errors import UserError
from peftbench.report.papers import (
    NOT_COMPARABLE,
    NOT_REPRODUCED,
    NOT_RUN,
    REPRODUCED,
    WITHIN,
    Claim,
    Finding,
    NotRun,
    Results,
    Table,
    _make,
    lora_plus_rates,
    lora_rank,
    lora_roles,
    lr_sensitivity,
    params_scores,
    prefix_length,
    qlora_memory,
    qlora_nf4,
)
from peftbench.report.papers._interval import difference, mean
from peftbench.report.papers._interval import of as interval_of
from peftbench.report.papers._sweep import lr, method, tuned

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = 400


def trained(
    name: str,
    hyper: dict[str, Any],
    score: float,
    seed: int = 0,
    lr: float = 1e-3,
    validation: float | None = None,
    params: int = 1000,
    errors: str | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """A run whose predictions have exactly the accuracy `score`; `errors` draws which ones are wrong, else the seed."""
    label = " ".join([name, *(f"{k}={v}" for k, v in hyper.items()), f"lr={lr:g}"])
    asked = spec.MethodSpec(name, label, 1, hyper)
    body = run(label, seed, round(score * EXAMPLES) / EXAMPLES, method=asked, lr=lr, examples=EXAMPLES, **changes)
    body["parameters"]["trainable"] = params
    if body["status"] == "finished":
        right = np.ones(EXAMPLES, dtype=int)
        right[_drawn(errors or str(seed)).permutation(EXAMPLES)[: EXAMPLES - round(score * EXAMPLES)]] = 0
        labels = [i % 2 for i in range(EXAMPLES)]
        values = [y if ok else 1 - y for y, ok in zip(labels, right, strict=True)]
        body["predictions"] = {"ids": [f"{i:016x}" for i in range(EXAMPLES)], "values": values, "labels": labels}
        body["metrics"]["validation"] = {"accuracy": score if validation is None else validation}
    return body


def _drawn(text: str) -> np.random.Generator:
    return np.random.default_rng(list(text.encode()))


def roles_runs(scores: dict[str, float], seeds: int = 3, own: bool = False, **changes: Any) -> list[dict[str, Any]]:
    """Every choice of roles with its score; with `own`, each errs on examples of its own."""
    return [
        trained("lora", {"roles": roles, "rank": lora_roles.PAPER[roles][0]}, score, seed,
                errors=f"{roles}{seed}" if own else None, **changes)
        for roles, score in scores.items()
        for seed in range(seeds)
    ]  # fmt: skip


def flat(score: float) -> dict[str, float]:
    return dict.fromkeys(lora_roles.PAPER, score)


def found(figure: Any, root: Path, bodies: list[dict[str, Any]], folder: str | None = None) -> Finding:
    write_all(root / (folder or figure.folders[0]), bodies)
    return figure.find(Results(root))


# The contract


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.1, 0.3, REPRODUCED),
        (-0.1, 0.3, WITHIN),
        (0.3, 1.2, WITHIN),
        (-0.4, -0.1, NOT_REPRODUCED),
        (1.0, 1.5, NOT_REPRODUCED),
    ],
)
def test_a_claim_is_judged_by_where_its_interval_lies(low: float, high: float, verdict: str) -> None:
    assert Claim("", "", (low + high) / 2, low, high, above=0, below=1).verdict == verdict


def test_the_worst_claim_decides_and_an_unmet_condition_before_it() -> None:
    good, open_, bad = (Claim("", "", v, v, w, above=0) for v, w in ((1, 2), (-1, 1), (-2, -1)))

    def verdict(*claims: Claim, incomparable: str | None = None) -> str:
        return Finding("", claims, Table((), ()), lambda canvas: None, incomparable).verdict

    assert verdict(good) == REPRODUCED
    assert verdict(good, open_) == WITHIN
    assert verdict(good, open_, bad) == NOT_REPRODUCED
    assert verdict(good, bad, incomparable="nothing was learned") == NOT_COMPARABLE
    with pytest.raises(ValueError, match="no verdict"):
        verdict()


def test_no_figure_types_its_verdict() -> None:
    words = ("REPRODUCED", "WITHIN", "NOT_COMPARABLE", f'"{REPRODUCED}"', f'"{WITHIN}"', f'"{NOT_COMPARABLE}"')
    for figure in _make.known():
        source = (ROOT / "peftbench" / "report" / "papers" / f"{figure}.py").read_text()
        assert not [w for w in words if w in source], figure


@pytest.mark.parametrize("name", list(_make.known()))
def test_the_files_that_a_figure_names_exist_and_its_experiments_are_valid(name: str) -> None:
    from peftbench import experiment

    for command in _make.known()[name].recipe:
        words = command.split()
        files = [w for w in words if w.endswith((".yaml", ".py"))]
        assert files, command
        for file in files:
            assert (ROOT / file).is_file(), command
            if file.endswith(".yaml"):
                read = experiment.load(ROOT / file)
                assert words[words.index("--results") + 1] == f"results/{_folder(name, read.name)}"


def _folder(figure: str, experiment: str) -> str:
    """The folder that the figure reads and whose last part is the experiment's name."""
    (folder,) = (f for f in _make.known()[figure].folders if f.split("/")[-1] == experiment)
    return folder


# Without records


def test_a_figure_without_records_says_so_with_the_command_that_makes_them(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    _make.write(["lora_rank"], tmp_path / "results", tmp_path / "docs")
    page = (tmp_path / "docs/paper-figures/lora_rank.md").read_text()
    assert NOT_RUN.capitalize() in page
    assert "python -m peftbench run experiments/paper/lora_rank.yaml --results results/paper/lora_rank" in page
    assert not (tmp_path / "docs/paper-figures/lora_rank.png").exists()
    index = (tmp_path / "docs/paper-figures.md").read_text()
    assert index.count(f"| {NOT_RUN} |") == len(_make.known())
    assert "![" not in index


def test_an_incomplete_sweep_is_not_run_and_names_what_is_missing(tmp_path: Path) -> None:
    scores = flat(0.8)
    del scores["q k"]
    with pytest.raises(NotRun, match="q k"):
        found(lora_roles.FIGURE, tmp_path, roles_runs(scores))


def test_failed_runs_alone_are_no_records(tmp_path: Path) -> None:
    with pytest.raises(NotRun, match="no finished run"):
        found(lora_roles.FIGURE, tmp_path, roles_runs(flat(0.8), status="diverged"))


def test_a_results_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such directory"):
        _make.write([], tmp_path / "nothing", tmp_path)


def test_an_unknown_figure_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="lora_rank"):
        _make.chosen(["lora_rnak"])


# Verdicts from synthetic records


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"q": 0.60}, REPRODUCED),
        ({"q": 0.79}, WITHIN),  # about the same
        ({"q": 0.95}, NOT_REPRODUCED),
        ({"q": 0.60, "q k v o": 0.70}, NOT_REPRODUCED),  # worse than q and v by far
    ],
)
def test_which_roles_follows_the_records(tmp_path: Path, changes: dict[str, float], verdict: str) -> None:
    bodies = roles_runs({**flat(0.8), **changes}, own=verdict == WITHIN)
    assert found(lora_roles.FIGURE, tmp_path, bodies).verdict == verdict


def test_where_nothing_was_learned_nothing_is_claimed(tmp_path: Path) -> None:
    assert found(lora_roles.FIGURE, tmp_path, roles_runs(flat(0.24), majority=0.23)).verdict == NOT_COMPARABLE


def test_roles_of_unequal_sizes_are_not_comparable(tmp_path: Path) -> None:
    bodies = roles_runs({**flat(0.8), "q": 0.6})
    bodies[0]["parameters"]["trainable"] = 2000
    assert "sizes differ" in str(found(lora_roles.FIGURE, tmp_path, bodies).incomparable)


@pytest.mark.parametrize(("low_rank", "verdict"), [(0.80, REPRODUCED), (0.60, NOT_REPRODUCED)])
def test_rank_follows_the_records(tmp_path: Path, low_rank: float, verdict: str) -> None:
    bodies = [
        trained(name, {"rank": rank}, (low_rank if rank == 1 else 0.8) + (0.1 if name == "dora" else 0), seed)
        for name in lora_rank.METHODS
        for rank in lora_rank.RANKS
        for seed in range(3)
    ]
    assert found(lora_rank.FIGURE, tmp_path, bodies).verdict == verdict


@pytest.mark.parametrize(("longest", "verdict"), [(0.70, REPRODUCED), (0.90, NOT_REPRODUCED)])
def test_prefix_length_follows_the_records(tmp_path: Path, longest: float, verdict: str) -> None:
    scores = dict(zip(prefix_length.LENGTHS, (0.60, 0.65, 0.7, 0.80, 0.85, 0.84, longest), strict=True))
    bodies = [trained("prefix", {"length": n}, s, seed) for n, s in scores.items() for seed in range(3)]
    assert found(prefix_length.FIGURE, tmp_path, bodies).verdict == verdict


def plus_runs(gain: float) -> list[dict[str, Any]]:
    """Equal rates reach 0.80, lambda 16 `gain` more, each with errors of its own."""
    return [
        trained(
            "lora_plus", {"ratio": b / a}, 0.8 + (gain if 15 < b / a < 17 else 0), seed, lr=a, errors=f"{a}{b}{seed}"
        )
        for a in lora_plus_rates.RATES
        for b in lora_plus_rates.RATES
        if b >= a
        for seed in range(3)
    ]


@pytest.mark.parametrize(("gain", "verdict"), [(0.15, REPRODUCED), (0.0, WITHIN)])
def test_two_rates_follow_the_records(tmp_path: Path, gain: float, verdict: str) -> None:
    assert found(lora_plus_rates.FIGURE, tmp_path, plus_runs(gain)).verdict == verdict


def test_a_cell_where_a_seed_failed_is_shown_but_never_the_best(tmp_path: Path) -> None:
    bodies = plus_runs(0.15)
    lost = next(
        i for i, b in enumerate(bodies) if b["spec"]["method"]["hyper"]["ratio"] == 64 and b["spec"]["seed"] == 0
    )
    again = trained(
        "lora_plus", bodies[lost]["hyper"], 0.99, 0, lr=bodies[lost]["spec"]["train"]["lr"], status="diverged"
    )
    bodies[lost] = again
    for body in bodies:
        if body["slug"].rsplit("--", 1)[0] == again["slug"].rsplit("--", 1)[0] and body is not again:
            body["metrics"]["validation"]["accuracy"] = 1.0
    finding = found(lora_plus_rates.FIGURE, tmp_path, bodies)
    assert any("1 diverged" in note for note in finding.notes)
    assert finding.verdict == REPRODUCED


@pytest.mark.parametrize(("adapter", "verdict"), [(0.80, REPRODUCED), (0.60, NOT_REPRODUCED)])
def test_sizes_and_scores_follow_the_records_of_three_sweeps(tmp_path: Path, adapter: float, verdict: str) -> None:
    named = [(name, {"rank": 8}, 0.86) for name in ("lora", "dora", "vera")]
    named += [("prefix", {"length": 10}, 0.7), ("full", {}, 0.81), ("bitfit", {}, 0.7), ("layernorm", {}, 0.7)]
    named += [("ia3", {}, 0.7), ("linear_probe", {}, 0.6)]
    named += [("adapter", {"bottleneck": n, "placement": p}, adapter) for n in (8, 64) for p in ("houlsby", "parallel")]
    homes = {"lora": "paper/lora_rank", "dora": "paper/lora_rank", "prefix": "paper/prefix_length"}
    for name, hyper, score in named:
        bodies = [trained(name, hyper, score, seed, params=0 if name == "linear_probe" else 1000) for seed in range(3)]
        write_all(tmp_path / homes.get(name, "paper/params_scores"), bodies)
    finding = params_scores.FIGURE.find(Results(tmp_path))
    assert finding.verdict == verdict
    assert list(_make.image(_make.Result(params_scores.FIGURE, finding)))


def test_runs_of_different_budgets_are_not_put_on_one_axis(tmp_path: Path) -> None:
    bodies = roles_runs({**flat(0.8), "q": 0.6})
    bodies[-3:] = [{**b, "spec": {**b["spec"], "train": {**b["spec"]["train"], "steps": 80}}} for b in bodies[-3:]]
    with pytest.raises(NotRun, match=r"40 steps.*80 steps"):
        found(lora_roles.FIGURE, tmp_path, bodies)


def sweep(rates: dict[str, list[float]], best: dict[str, float], seeds: int) -> list[dict[str, Any]]:
    return [
        trained(name, {}, 0.8 - 0.1 * (rate != best[name]), seed, lr=rate)
        for name, tried in rates.items()
        for rate in tried
        for seed in range(seeds)
    ]


@pytest.mark.parametrize(
    ("lora", "verdict"), [(2e-3, REPRODUCED), (2e-4, NOT_REPRODUCED), (8e-3, WITHIN)], ids=["ten", "one", "edge"]
)
def test_the_best_rates_ratio_is_known_as_far_as_the_grid_tells(tmp_path: Path, lora: float, verdict: str) -> None:
    rates = {"full": [1e-4, 2e-4, 4e-4], "lora": [1e-4, 2e-4, 4e-4, 1e-3, 2e-3, 4e-3, 8e-3]}
    for folder in lr_sensitivity.FOLDERS[1:]:
        write_all(tmp_path / folder, sweep(rates, {"full": 2e-4, "lora": lora}, 1))
    finding = lr_sensitivity.FIGURE.find(Results(tmp_path))
    assert {c.verdict for c in finding.claims} == {verdict}
    assert len(finding.claims) == 2  # one seed says nothing of the variants


# How rates are chosen, and what intervals are worth


def read(root: Path, bodies: list[dict[str, Any]]) -> list[Any]:
    write_all(root / "x", bodies)
    return Results(root).runs("x")


def test_the_rate_is_chosen_on_validation_and_not_on_test(tmp_path: Path) -> None:
    bodies = [trained("lora", {"rank": 1}, 0.9, lr=1e-3, validation=0.5)]
    bodies += [trained("lora", {"rank": 1}, 0.6, lr=1e-2, validation=0.7)]
    chosen = tuned(read(tmp_path, bodies), method)["lora"]
    assert (chosen.lr, chosen.test, chosen.at_edge) == (1e-2, 0.6, True)


def test_a_rate_at_which_a_seed_failed_is_not_chosen(tmp_path: Path) -> None:
    bodies = [trained("lora", {}, 0.6, seed, lr=1e-3) for seed in range(2)]
    bodies += [trained("lora", {}, 0.9, 0, lr=1e-2), trained("lora", {}, 0.9, 1, lr=1e-2, status="diverged")]
    assert tuned(read(tmp_path, bodies), method)["lora"].lr == 1e-3


def test_tuning_trials_are_left_out(tmp_path: Path) -> None:
    trial = trained("lora", {}, 0.9, lr=1e-2)
    trial["spec"]["trial"] = 0
    assert [lr(r) for r in read(tmp_path, [trial, trained("lora", {}, 0.6, lr=1e-3)])] == [1e-3]


def test_a_difference_is_paired_by_seed_and_example(tmp_path: Path) -> None:
    """Two configurations that err on the same examples differ by nothing, however uncertain each of them is."""
    errors = {1: "same", 2: "same", 3: "own"}
    bodies = [trained("lora", {"rank": r}, 0.8, s, errors=f"{errors[r]} {s}") for r in errors for s in range(3)]
    one, two, three = (t.runs for t in tuned(read(tmp_path, bodies), lambda r: r.body["hyper"]["rank"]).values())
    assert difference(one, two) == (0, 0, 0)
    assert mean(one).low < 0.78
    apart = difference(one, three)
    assert apart.value == 0
    assert apart.low < -0.02 < 0.02 < apart.high


def test_one_seed_says_nothing_of_others(tmp_path: Path) -> None:
    assert mean(read(tmp_path, [trained("lora", {}, 0.8)])) == (0.8, -math.inf, math.inf)


def test_more_claims_make_wider_intervals_and_no_other_digits(tmp_path: Path) -> None:
    runs = read(tmp_path, [trained("lora", {}, 0.8, seed) for seed in range(3)])
    alone, among = mean(runs), mean(runs, claims=6)
    assert among.low < alone.low < alone.high < among.high
    assert mean(runs) == alone


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    """2,000 times a true accuracy of 0.7, 3 seeds with their own luck, 100 examples with their own difficulty."""
    draw = np.random.default_rng(1)
    hits, widths = 0, []
    for _ in range(2000):
        level = 0.7 + 0.03 * draw.standard_normal((3, 1)) + 0.15 * draw.standard_normal((1, 100))
        i = interval_of((draw.random((3, 100)) < level).astype(float))
        hits += i.low <= 0.7 <= i.high
        widths.append(i.high - i.low)
    assert hits / 2000 >= 0.945
    assert np.median(widths) < 0.35  # not by saying nothing


def test_predictions_that_contradict_the_stored_score_are_an_error(tmp_path: Path) -> None:
    body = trained("lora", {}, 0.8)
    body["metrics"]["test"]["accuracy"] = 0.9
    with pytest.raises(ValueError, match="predictions have accuracy"):
        mean(read(tmp_path, [body]))


# Bytes


@pytest.fixture
def rendered(tmp_path: Path) -> tuple[Path, Path]:
    """A results directory with one sweep, and where its figure was written."""
    results, docs = tmp_path / "results", tmp_path / "docs"
    write_all(results / "paper/lora_roles", roles_runs({**flat(0.8), "q": 0.6}))
    _make.write([], results, docs)
    return results, docs


def test_drawing_again_changes_no_byte(rendered: tuple[Path, Path]) -> None:
    results, docs = rendered
    before = {p: p.read_bytes() for p in sorted(docs.rglob("*.*"))}
    assert {p.suffix for p in before} == {".md", ".png", ".svg"}
    assert _make.write([], results, docs) == []
    for path in (docs / "paper-figures").glob("*"):
        path.unlink()
    assert _make.write([], results, docs)
    assert {p: p.read_bytes() for p in sorted(docs.rglob("*.*"))} == before


def checked(results: Path, docs: Path, *names: str) -> Any:
    return CliRunner().invoke(app, ["figures", *names, "--check", "--results", str(results), "--out", str(docs)])


def test_check_passes_where_nothing_changed_and_writes_nothing(rendered: tuple[Path, Path]) -> None:
    results, docs = rendered
    times = {p: p.stat().st_mtime_ns for p in docs.rglob("*.*")}
    assert checked(results, docs).exit_code == 0
    assert {p: p.stat().st_mtime_ns for p in docs.rglob("*.*")} == times


@pytest.mark.parametrize("name", ["lora_roles.md", "lora_roles.png", "lora_roles.svg"])
def test_check_names_a_file_that_was_edited(rendered: tuple[Path, Path], name: str) -> None:
    results, docs = rendered
    path = docs / "paper-figures" / name
    path.write_bytes(path.read_bytes() + b" ")
    outcome = checked(results, docs)
    assert outcome.exit_code == 1
    assert f"{path}: differs" in outcome.output


def test_check_names_missing_left_over_and_foreign_files(rendered: tuple[Path, Path]) -> None:
    results, docs = rendered
    folder = docs / "paper-figures"
    (folder / "lora_roles.png").unlink()
    (folder / "lora_rank.png").write_bytes(b"from earlier records")
    (folder / "gone.md").write_text("of a figure that is no more")
    said = checked(results, docs).output
    assert f"{folder / 'lora_roles.png'}: is missing" in said
    assert f"{folder / 'lora_rank.png'}: must not be there" in said
    assert f"{folder / 'gone.md'}: belongs to no figure" in said


def test_a_new_record_changes_the_page(rendered: tuple[Path, Path]) -> None:
    results, docs = rendered
    write_all(results / "paper/lora_roles", roles_runs(flat(0.5), seeds=4)[3::4])
    said = checked(results, docs, "lora_roles").output
    assert "lora_roles.md: differs" in said
    assert "lora_roles.png: differs" in said


def test_page_and_image_say_our_scale_and_the_verdict(rendered: tuple[Path, Path]) -> None:
    from matplotlib.figure import Figure

    from peftbench.report.papers._page import _frame

    results, docs = rendered
    for page in (docs / "paper-figures.md", docs / "paper-figures/lora_roles.md"):
        text = page.read_text()
        assert "**Reproduced.**" in text
        assert "Our run, not the paper's: minilm-l6 (23 million parameters), embedded/question_type, 40 steps" in text
        assert "arXiv:2106.09685" in text
    canvas, finding = Figure(), lora_roles.FIGURE.find(Results(results))
    _frame(canvas, lora_roles.FIGURE, finding)
    assert "Our run, not the paper's: minilm-l6" in canvas.get_supxlabel().replace("\n", " ")
    assert f"verdict: {REPRODUCED}" in canvas.get_supxlabel().replace("\n", " ")


# Figures that are not sweeps


def nf4_file(root: Path, **errors: float) -> None:
    names = {"int4": 34.34, "fp4-e2m1": 31.07, "fp4-bitsandbytes": 31.07, "fp4-e3m0": 29.48, "nf4": 27.41}
    row = {"what": "made up", "weights": 64, "tensors": 1}
    both = {n: {"float32": errors.get(n.replace("-", "_"), 0.12), "double": 0.12} for n in names}
    rows = [{**row, "source": s, "error": both} for s in ("normal", "minilm-l6")]
    content = {"block": 64, "types": {n: {"label": n, "paper_perplexity": p} for n, p in names.items()}, "rows": rows}
    path = root / qlora_nf4.FILE
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(("nf4", "verdict"), [(0.09, REPRODUCED), (0.13, NOT_REPRODUCED)])
def test_nf4_is_judged_by_its_error(tmp_path: Path, nf4: float, verdict: str) -> None:
    nf4_file(tmp_path, nf4=nf4)
    assert qlora_nf4.FIGURE.find(Results(tmp_path)).verdict == verdict


def memory_file(root: Path, **peaks: float) -> None:
    parts = dict.fromkeys(qlora_memory.PARTS, 10**9)
    rows = [
        {"name": name, "peak_bytes": 1e9 * peaks.get(name.replace("llama-", "m").replace(" ", "_"), 30), "trainable": 1,
         "at_peak": {**parts, "weights": 5.0e9, "adapter": 10**8}, "setting": {"batch": 1, "seq": 512, "dtype": "bf16"},
         "hyper": {"rank": 64}, "assumed": {"device": "not verified on a GPU"}}
        for name in (*qlora_memory.MAIN, qlora_memory.SMALL, qlora_memory.UNCHECKED)
    ]  # fmt: skip
    path = root / qlora_memory.FILE
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"bits_per_weight": {"float32": 4.5, "double": 4.127}, "rows": rows}))


@pytest.mark.parametrize(("qlora", "verdict"), [(45, REPRODUCED), (50, NOT_REPRODUCED)])
def test_memory_is_judged_by_the_papers_totals(tmp_path: Path, qlora: float, verdict: str) -> None:
    memory_file(tmp_path, m65b_full=1000, m65b_qlora=qlora)
    finding = qlora_memory.FIGURE.find(Results(tmp_path))
    assert finding.verdict == verdict
    assert "not measured" in finding.scale


def test_a_damaged_file_of_figures_is_refused_by_name(tmp_path: Path) -> None:
    nf4_file(tmp_path)
    (tmp_path / qlora_nf4.FILE).write_text("{")
    with pytest.raises(UserError, match=r"nf4_error\.json"):
        qlora_nf4.FIGURE.find(Results(tmp_path))


def test_latencies_are_judged_by_their_ratios_to_the_base() -> None:
    """The committed pass itself: what the page says of it follows from its numbers."""
    finding = _make.known()["lora_latency"].find(Results(ROOT / "results"))
    by_shape = {row[0]: row[1:] for row in finding.table.rows}
    assert set(by_shape) >= {"lora", "lora, merged", "adapter-houlsby"}
    assert all(math.isfinite(c.low) and c.low <= c.value <= c.high for c in finding.claims)


# The repository itself


@pytest.mark.slow
def test_committed_figures_are_what_the_committed_records_give() -> None:
    assert _make.check([], ROOT / "results", ROOT / "docs") == []
