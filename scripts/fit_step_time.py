"""Fit the constants of step times on published steps, and say how well they predict methods that the fit has not seen.

python scripts/fit_step_time.py [--counts FILE]

It reads peftbench/estimate/published/times/hf_metamath.yaml, counts the kernels of each run's program on fake tensors
(peft_steps.py; some ten minutes), does the same for the lengths in qwen.yaml, and fits the constants by least
squares of the logarithms, each method and each of Qwen's models weighing the same. Every one is then predicted by the
constants of all others. It writes peftbench/estimate/card/step_seconds.yaml and the tables of docs/estimate-time.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml
from scipy.optimize import least_squares
from tabulate import tabulate

from peftbench.estimate import step_estimate
from peftbench.estimate.card import step_seconds
from peftbench.estimate.card.cards import card
from peftbench.estimate.card.step_seconds import Constants
from peftbench.estimate.card.traffic import Moves, Product, Traffic
from peftbench.estimate.count import ModelQuery

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "estimate-time.md"
FIT = step_seconds.FILE
FIT_HEAD = """# Written by scripts/fit_step_time.py, never by hand. The constants are shares of a card's rate and
# bandwidth, and the seconds of one launch. Every run is predicted by constants that were fitted without its method.
"""
LENGTHS = ROOT / "peftbench" / "estimate" / "published" / "times" / "qwen.yaml"
POINTS = ROOT / "peftbench" / "estimate" / "published" / "times" / "hf_metamath.yaml"
REFERENCE = "lora-rank32"
NOT_FITTED = ("boft",)  # its program takes far longer than its kernels explain
PROGRAMS = {
    "peft": "peft's own program, L40S",
    "ours": "this project's program, L40S",
    "qwen": "this project's program, A100",
}
ERRORS, SPREAD = ("error", "ratio_error"), ("median", "ninth", "largest")
START = (0.6, 0.8, 1.2, 8e-6)
DECOMPOSES = "its start decomposes the base's weights, which takes minutes on a CPU"
LEFT_OUT = {
    "FROD": DECOMPOSES,
    "OSF": DECOMPOSES,
    "PSOFT": DECOMPOSES,
    "mica": DECOMPOSES,
    "lora-fa": "its optimiser is not AdamW",
}


def main() -> None:
    """Count, fit, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=Path, help="keep the counted kernels in this file, and read them from it")
    args = parser.parse_args()
    published = yaml.safe_load(POINTS.read_text(encoding="utf-8"))
    counts = Counts(args.counts)
    for name, run in published["runs"].items():
        peft = run["peft"] or {}
        kinds = {peft.get("peft_type"), peft.get("init_lora_weights"), run.get("optimizer")}
        if why := next((LEFT_OUT[kind] for kind in kinds if kind in LEFT_OUT), None):
            counts.refused[f"peft {name}"] = why
            continue
        counts.add(f"peft {name}", lambda run=run: of_peft(published, run))
        if "ours" in run:
            counts.add(f"ours {name}", lambda run=run: of_ours(published, run))
    lengths = yaml.safe_load(LENGTHS.read_text(encoding="utf-8"))
    for model, of in lengths["models"].items():
        for seq in of["seconds"]:
            counts.add(f"qwen {model} {seq}", lambda of=of, seq=seq: of_length(lengths, of["config"], seq))
    rows = held_out(points(published, lengths, counts.known))
    write(published, lengths, rows, fitted([r for r in rows if is_fitted(r)]), counts.refused)


def points(
    published: Mapping[str, Any], lengths: Mapping[str, Any], known: Mapping[str, Traffic]
) -> list[dict[str, Any]]:
    """Return one row for each program with its published seconds: of this project's, those of the same method."""
    rows = []
    for name, traffic in known.items():
        program, run = name.split(" ", 1)
        row: dict[str, Any] = {"program": program, "run": run, "traffic": traffic}
        if program == "qwen":
            model, seq = run.split(" ")
            row |= {"method": model, "passes": lengths["passes"], "card": card(lengths["card"])}
            row["measured"] = lengths["models"][model]["seconds"][int(seq)]
        else:
            row |= {"method": method_of(run, published), "passes": 1, "card": card(published["card"])}
            row["measured"] = published["runs"][run]["seconds"]
        rows.append(row)
    return rows


def is_fitted(row: Mapping[str, Any]) -> bool:
    """Whether the constants are fitted on a row: it is the program that was timed, and kernels explain its time."""
    return row["program"] != "ours" and row["method"] not in NOT_FITTED


def held_out(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add the seconds of each row as the constants of all other methods, or models, predict them."""
    for method in sorted({r["method"] for r in rows}):
        fit = fitted([r for r in rows if is_fitted(r) and r["method"] != method])
        for r in rows:
            if r["method"] == method:
                r["predicted"] = predicted(r, fit)
                r["error"] = r["predicted"] / r["measured"] - 1
    for r in rows:
        same = [x for x in rows if x["program"] == r["program"]]
        reference = next((x for x in same if x["run"] == REFERENCE), None)
        r["ratio_error"] = 0.0 if reference is None else (1 + r["error"]) / (1 + reference["error"]) - 1
    return rows


def predicted(row: Mapping[str, Any], fit: Constants) -> float:
    """Return the seconds of a row."""
    return row["passes"] * step_seconds.step_seconds(row["traffic"], row["card"], fit).seconds


def method_of(run: str, published: Mapping[str, Any]) -> str:
    """Return the method of a run: variants of LoRA that compute something else are methods of their own."""
    peft = published["runs"][run]["peft"]
    if peft is None:
        return "full"
    variant = next((name for name in ("use_dora", "use_bdlora") if name in peft), None)
    return str(peft["peft_type"]).lower() if variant is None else variant.removeprefix("use_")


def fitted(rows: Sequence[Mapping[str, Any]]) -> Constants:
    """Return the constants that predict these programs best: least squares of the logarithms, a method weighing one."""
    names = sorted({r["card"].name for r in rows})
    share = [1 / sum(x["method"] == r["method"] for x in rows) for r in rows]

    def constants(logs: Any) -> Constants:
        memory, cached, *each = map(float, np.exp(logs))
        products, launch = each[: len(names)], each[len(names) :]
        return Constants(dict(zip(names, products, strict=True)), memory, cached, dict(zip(names, launch, strict=True)))

    def residuals(logs: Any) -> Any:
        fit = constants(logs)
        return np.sqrt(share) * np.log([predicted(r, fit) / r["measured"] for r in rows])

    start = np.log([*START[1:3], *[START[0]] * len(names), *[START[3]] * len(names)])
    return constants(least_squares(residuals, start, loss="soft_l1", f_scale=0.1).x)


def write(
    published: Mapping[str, Any],
    lengths: Mapping[str, Any],
    rows: Sequence[dict[str, Any]],
    fit: Constants,
    refused: Mapping[str, str],
) -> None:
    """Write the file of the fit, and the page with its tables."""
    by_program = {name: [r for r in rows if r["program"] == name] for name in PROGRAMS}
    found: dict[str, Any] = {"constants": rounded(asdict(fit))}
    for name, some in by_program.items():
        keys = ERRORS[:1] if name == "qwen" else ERRORS
        of, count = (lengths, len(some)) if name == "qwen" else (published, len({r["method"] for r in some}))
        found[name] = {
            "card": of["card"],
            "source": of["source"],
            "what": f"{count} {'lengths of three models' if name == 'qwen' else 'methods'}",
            **{f"{key}_{what}": value for key in keys for what, value in spread(some, key).items()},
            "runs": {
                r["run"]: {key: round(r[key], 4) for key in ("measured", "predicted", *keys)}
                for r in sorted(some, key=lambda r: r["measured"])
            },
        }
    found["not_counted"] = {name.removeprefix("peft "): why for name, why in refused.items()}
    FIT.write_text(f"{FIT_HEAD}{yaml.safe_dump(found, sort_keys=False, width=110)}", encoding="utf-8")
    PAGE.write_text(page(found), encoding="utf-8")


def rounded(value: Any) -> Any:
    """Return numbers, also inside mappings, with four digits."""
    return {k: rounded(v) for k, v in value.items()} if isinstance(value, dict) else float(f"{value:.4g}")


def spread(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, float]:
    """Return what half of the methods, nine in ten and all of them stay within; of lengths, each is one."""
    each = [abs(r[key]) for r in rows if r["program"] == "qwen"]
    errors = sorted(each or per_method(rows, key).values())
    of = {"median": median(errors), "ninth": float(np.quantile(errors, 0.9)), "largest": errors[-1]}
    return {name: round(value, 4) for name, value in of.items()}


def page(found: Mapping[str, Any]) -> str:
    """Return the page with its tables replaced: what stands between <!-- name --> and <!-- end -->."""
    c = found["constants"]
    every = [f"{key}_{what}" for key in ERRORS for what in SPREAD]
    rows = [
        [whose, found[name]["what"], *(f"{found[name][e]:.1%}" if e in found[name] else "" for e in every)]
        for name, whose in PROGRAMS.items()
    ]
    heads = ["kernels of", "points", "seconds: half within", "nine in ten", "all"]
    constants = [
        *(
            (f"share of its rate that products reach on {name}", f"{share:.0%}")
            for name, share in c["products"].items()
        ),
        ("share of the bandwidth that kernels reach", f"{c['memory']:.0%}"),
        ("the same of what the cache holds", f"{c['cached']:.0%}"),
        *((f"microseconds for a kernel of the host with {name}", f"{1e6 * t:.1f}") for name, t in c["launch"].items()),
    ]
    parts = {
        "constants": table(constants, ["constant", "value"]),
        "summary": table(rows, [*heads, "ratio to LoRA: half within", *heads[3:]]),
        "ours": runs_table(found["ours"]["runs"]),
        "peft": runs_table(found["peft"]["runs"]),
        "qwen": runs_table(found["qwen"]["runs"]),
        "not counted": "\n".join(f"- {name}: {why}" for name, why in found["not_counted"].items()),
    }
    text = PAGE.read_text(encoding="utf-8")
    for name, part in parts.items():
        start, rest = text.split(f"<!-- {name} -->\n", 1)
        text = f"{start}<!-- {name} -->\n{part}\n<!-- end -->{rest.split('<!-- end -->', 1)[1]}"
    return text


def runs_table(runs: Mapping[str, Mapping[str, float]]) -> str:
    """Return the table of every run."""
    rows = [
        (run, f"{r['measured']:.4g}", f"{r['predicted']:.4g}", *(f"{r[key]:+.1%}" for key in ERRORS if key in r))
        for run, r in runs.items()
    ]
    heads = ["run", "published, s", "predicted, s", "error", f"of the ratio to {REFERENCE}"]
    return table(rows, heads[: len(rows[0])])


def table(rows: Sequence[Sequence[Any]], heads: Sequence[str]) -> str:
    """Return a Markdown table, numbers to the right."""
    align = ("left", *("right",) * (len(heads) - 1))
    return tabulate(rows, headers=heads, tablefmt="pipe", disable_numparse=True, colalign=align)


def per_method(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, float]:
    """Return the median absolute error of each method's runs."""
    methods = {r["method"] for r in rows}
    return {m: median(abs(r[key]) for r in rows if r["method"] == m) for m in methods}


class Counts:
    """Kernels by name, kept in a file."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        kept = json.loads(path.read_text()) if path and path.exists() else {}
        self.known: dict[str, Traffic] = {name: read(value) for name, value in kept.get("known", {}).items()}
        self.refused: dict[str, str] = kept.get("refused", {})

    def add(self, name: str, count: Any) -> None:
        """Count one program, unless it is known."""
        if name in self.known or name in self.refused:
            return
        print(name, file=sys.stderr, flush=True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                traffic = count()
            if traffic is None:
                raise ValueError("the number of kernels is not affine in the number of layers")
            self.known[name] = traffic
        except Exception as error:  # whatever a foreign program raises on tensors without numbers
            self.refused[name] = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        if self.path:
            known = {key: asdict(value) for key, value in self.known.items()}
            self.path.write_text(json.dumps({"known": known, "refused": self.refused}))


def read(value: Mapping[str, Any]) -> Traffic:
    """Return kernels that were written as JSON."""
    products = tuple(Product(**p) for p in value["products"])
    return Traffic(products, tuple(Moves(**k) for k in value["others"]), value["transfers"], value["sent"])


def of_peft(published: Mapping[str, Any], run: Mapping[str, Any]) -> Traffic | None:
    """Count the kernels of the program that was timed."""
    from peft_steps import peft_traffic

    return peft_traffic(published["model"], run["peft"], published["batch"], published["seq"])


def of_ours(published: Mapping[str, Any], run: Mapping[str, Any]) -> Traffic | None:
    """Count the kernels of this project's step with the same method."""
    setting = step_estimate.Setting(published["batch"], published["seq"], published["dtype"])
    query = ModelQuery(published["model"], "generation")
    return step_estimate.estimate(query, run["ours"]["method"], run["ours"]["hyper"], setting).traffic


def of_length(lengths: Mapping[str, Any], config: Mapping[str, Any], seq: int) -> Traffic | None:
    """Count the kernels of this project's step with Qwen's sizes."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config))
        how = {"checkpointing": True, "attention": "flash"}
        setting = step_estimate.Setting(lengths["batch"], seq, lengths["dtype"], **how)
        query = ModelQuery(folder, "generation")
        return step_estimate.estimate(query, lengths["method"], lengths["hyper"], setting).traffic


if __name__ == "__main__":
    main()
