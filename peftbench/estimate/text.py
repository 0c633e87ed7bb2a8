"""Estimates for people: one as text, many as a table and a figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from peftbench.estimate.fit import Fit
from peftbench.estimate.step import UNVERIFIED, Estimate

KINDS = ("weights", "adapter", "head", "gradients", "optimizer", "activations", "temporaries")


def size(count: int | None) -> str:
    """`12.5 GiB`, in the unit that fits."""
    if count is None:
        return "—"
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:,.2f} {name}"
    return f"{count} B"


def as_text(e: Estimate) -> str:
    """One estimate."""
    told = ", ".join(f"{k}={v}" for k, v in e.hyper.items())
    rows = [("peak", f"{e.peak_bytes:,}", f"bytes, {size(e.peak_bytes)}, in {e.peak_phase}")]
    rows += [(f"  {kind}", f"{e.at_peak[kind]:,}", size(e.at_peak[kind])) for kind in KINDS]
    rows += [(f"held: {name}", f"{count:,}", size(count)) for name, count in e.held.items() if count]
    rows.append(("trainable", f"{e.trainable:,}", "parameters, without the head"))
    if e.stored_bytes is not None:
        rows.append(("stored", f"{e.stored_bytes:,}", "bytes of the adapter's file"))
    rows.append(("operations", f"{e.flops:,}", "floating-point, of the products of one step"))
    table = tabulate(rows, tablefmt="plain", colalign=("left", "right", "left"), disable_numparse=True)
    s = e.setting
    head = f"{e.method}{f' ({told})' if told else ''}\n{e.model}, {e.task}: batch {s.batch}, {s.seq} tokens"
    if s.checkpointing:
        head += ", gradient checkpointing"
    assumed = "\n".join(f"{name}: {what}" for name, what in e.assumed.items())
    text = f"{head}\n{table}\nassumed\n{assumed}\nlayers simulated: {e.layers_simulated}"
    return text + (f"\n\n{_roles(e.by_role)}" if e.by_role else "")


def _roles(by_role: Mapping[str, Mapping[str, int]]) -> str:
    rows = [(role, *(size(parts.get(kind, 0)) for kind in KINDS)) for role, parts in sorted(by_role.items())]
    return tabulate(rows, headers=("at the peak", *KINDS), tablefmt="plain", stralign="right")


def fit_text(found: Fit) -> str:
    """What fits, what it takes, and what the next larger one would."""
    unit = {"batch": "batch", "seq": "tokens"}[found.axis]
    limit = f"{found.limit_bytes:,} bytes ({size(found.limit_bytes)})"
    after = found.next_larger
    if found.fits is None:
        assert after is not None
        return f"nothing fits into {limit}: {unit} 1 takes {after.peak_bytes:,} bytes ({size(after.peak_bytes)})"
    lines = [
        f"{limit}: the largest {unit} that fits is {found.largest}, "
        f"with a peak of {found.fits.peak_bytes:,} bytes ({size(found.fits.peak_bytes)})"
    ]
    if after is None:
        lines.append(f"{unit} {found.largest + 1}: more than the network takes")
    else:
        lines.append(f"{unit} {found.largest + 1} would take {after.peak_bytes:,} bytes ({size(after.peak_bytes)})")
    return "\n".join([*lines, "", as_text(found.fits)])


def rows(estimates: Sequence[Estimate], reference: str) -> list[dict[str, Any]]:
    """One row a method, in bytes; of_reference is the peak over that of the method `reference`."""
    full = next((e.peak_bytes for e in estimates if e.method == reference), None)
    return [
        {
            "method": e.method,
            "trainable": e.trainable,
            "stored": e.stored_bytes,
            **{kind: e.at_peak[kind] for kind in KINDS},
            "peak": e.peak_bytes,
            "of_reference": None if full is None else e.peak_bytes / full,
            "flops": e.flops,
        }
        for e in estimates
    ]


def table(estimates: Sequence[Estimate], refused: Mapping[str, str], reference: str) -> str:
    """Markdown: every method at its defaults, GiB; those that cannot be estimated with the reason."""
    told = []
    for row in rows(estimates, reference):
        sizes = [f"{row[kind] / 2**30:,.3f}" for kind in (*KINDS, "peak")]
        stored = "—" if row["stored"] is None else f"{row['stored'] / 2**20:,.2f}"
        share = "—" if row["of_reference"] is None else f"{row['of_reference']:.3f}"
        told.append([row["method"], f"{row['trainable']:,}", stored, *sizes, share, f"{row['flops'] / 1e12:,.3f}"])
    heads = ["method", "trainable", "stored, MiB", *KINDS, "peak, GiB", f"of {reference}'s peak", "TFLOP a step"]
    align = ("left", *("right",) * (len(heads) - 1))
    text = tabulate(told, headers=heads, tablefmt="pipe", disable_numparse=True, colalign=align) if told else ""
    notes = [f"- {name}: {why}" for name, why in refused.items()]
    return "\n".join([text, "", f"Parts at the peak in GiB; {UNVERIFIED}.", *notes])


def write(folder: Path, estimates: Sequence[Estimate], refused: Mapping[str, str], reference: str) -> list[Path]:
    """The table as Markdown and CSV, and the figure as SVG and PNG, in `folder`."""
    from peftbench.report.figures import memory_bars

    folder.mkdir(parents=True, exist_ok=True)
    told = rows(estimates, reference)
    sheet = io.StringIO()
    writer = csv.DictWriter(sheet, fieldnames=list(told[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(told)
    files = {
        "estimate.md": f"{table(estimates, refused, reference)}\n".encode(),
        "estimate.csv": sheet.getvalue().encode(),
    }
    e = estimates[0]
    title = f"{e.model}: predicted memory of a training step"
    below = f"batch {e.setting.batch}, {e.setting.seq} tokens, {e.setting.dtype}; {UNVERIFIED}"
    files |= dict(memory_bars.draw("estimate", told, KINDS, title, below))
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in files]
