"""Format estimates for people: one as text, many as a table and a figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from peftbench.estimate.card import gpu_memory
from peftbench.estimate.memory_fit import Fit
from peftbench.estimate.step_estimate import KINDS, UNVERIFIED, StepEstimate
from peftbench.report.media.markdown import escape
from peftbench.report.media.sheet import cell as sheet_cell
from peftbench.report.write.files import replace


def size(count: int | None) -> str:
    """Return bytes in the unit that fits, e.g. `12.5 GiB`."""
    if count is None:
        return "—"
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:,.2f} {name}"
    return f"{count} B"


def as_text(e: StepEstimate) -> str:
    """Format one estimate."""
    hyper = ", ".join(f"{k}={v}" for k, v in e.hyper.items())
    rows = [("peak", f"{e.peak_bytes:,}", f"bytes, {size(e.peak_bytes)}, in {e.peak_phase}")]
    rows += [(f"  {kind}", f"{e.at_peak[kind]:,}", size(e.at_peak[kind])) for kind in KINDS]
    if e.setting.program is not None:
        about = "" if e.layers_simulated == "all" else "; not exact at full depth, --every-layer is"
        held = f"{size(e.reserved_bytes)}, what CUDA's allocator holds{about}"
        rows.append(("reserved", f"{e.reserved_bytes:,}", held))
    rows += [(f"held: {name}", f"{count:,}", size(count)) for name, count in e.held.items() if count]
    if e.shards:
        rows.append(("gathered: a block", f"{e.shards['block']:,}", f"{size(e.shards['block'])}, one at a time"))
        rows.append(("gathered: the rest", f"{e.shards['rest']:,}", f"{size(e.shards['rest'])}, embeddings and norms"))
        if e.setting.offload:
            rows.append(("on the host", f"{e.shards['offloadable']:,}", size(e.shards["offloadable"])))
    rows.append(("trainable", f"{e.trainable:,}", "parameters, without the head"))
    if e.stored_bytes is not None:
        rows.append(("stored", f"{e.stored_bytes:,}", "bytes of the adapter's file"))
    rows.append(("operations", f"{e.flops:,}", "floating-point, of the products of one step"))
    table = tabulate(rows, tablefmt="plain", colalign=("left", "right", "left"), disable_numparse=True)
    s = e.setting
    head = f"{e.method}{f' ({hyper})' if hyper else ''}\n{e.model}, {e.task}: batch {s.batch}, {s.seq} tokens"
    if s.shards > 1:
        head += f", on each of {s.shards} devices{', offloaded' if s.offload else ''}"
    if s.checkpointing:
        head += ", gradient checkpointing"
    assumed = "\n".join(f"{name}: {what}" for name, what in e.assumed.items())
    text = f"{head}\n{table}\nassumed\n{assumed}\nlayers simulated: {e.layers_simulated}"
    return text + (f"\n\n{_roles(e.by_role)}" if e.by_role else "")


def _roles(by_role: Mapping[str, Mapping[str, int]]) -> str:
    rows = [(role, *(size(parts.get(kind, 0)) for kind in KINDS)) for role, parts in sorted(by_role.items())]
    return tabulate(rows, headers=("at the peak", *KINDS), tablefmt="plain", stralign="right")


def fit_text(result: Fit) -> str:
    """Format what fits, what it takes, and what the next larger value would take."""
    unit = {"batch": "batch", "seq": "tokens"}[result.axis]
    limit = f"{result.limit_bytes:,} bytes ({size(result.limit_bytes)})"
    after = result.next_larger
    if result.fits is None:
        assert after is not None
        return f"nothing fits into {limit}: {unit} 1 takes {after.peak_bytes:,} bytes ({size(after.peak_bytes)})"
    lines = [
        f"{limit}: the largest {unit} that fits is {result.largest}, "
        f"with a peak of {result.fits.peak_bytes:,} bytes ({size(result.fits.peak_bytes)})"
    ]
    if after is None:
        lines.append(f"{unit} {result.largest + 1}: more than the network takes")
    else:
        lines.append(f"{unit} {result.largest + 1} would take {after.peak_bytes:,} bytes ({size(after.peak_bytes)})")
    return "\n".join([*lines, "", as_text(result.fits)])


def rows(estimates: Sequence[StepEstimate], reference: str) -> list[dict[str, Any]]:
    """Return one row per method, in bytes; `of_reference` is the peak divided by that of the method `reference`."""
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


def table(estimates: Sequence[StepEstimate], refused: Mapping[str, str], reference: str) -> str:
    """Return a Markdown table of all methods, in GiB, with the reasons of those that cannot be estimated.

    Args:
        estimates: The estimates.
        refused: Reason by method for methods without an estimate.
        reference: Method whose peak the others are divided by.
    """
    cells = []
    for row in rows(estimates, reference):
        sizes = [f"{row[kind] / 2**30:,.3f}" for kind in (*KINDS, "peak")]
        stored = "—" if row["stored"] is None else f"{row['stored'] / 2**20:,.2f}"
        share = "—" if row["of_reference"] is None else f"{row['of_reference']:.3f}"
        cells.append(
            [escape(row["method"]), f"{row['trainable']:,}", stored, *sizes, share, f"{row['flops'] / 1e12:,.3f}"]
        )
    heads = [
        "method",
        "trainable",
        "stored, MiB",
        *KINDS,
        "peak, GiB",
        f"of {escape(reference)}'s peak",
        "TFLOP a step",
    ]
    align = ("left", *("right",) * (len(heads) - 1))
    text = tabulate(cells, headers=heads, tablefmt="pipe", disable_numparse=True, colalign=align) if cells else ""
    notes = [f"- {escape(f'{name}: {why}')}" for name, why in refused.items()]
    own = estimates[0].setting.program if estimates else None
    how = UNVERIFIED if own is None else f"the step of {own.name}, {gpu_memory.ASSUMED}"
    return "\n".join([text, "", f"Parts at the peak in GiB; {how}.", *notes])


def write(folder: Path, estimates: Sequence[StepEstimate], refused: Mapping[str, str], reference: str) -> list[Path]:
    """Write the table as Markdown and CSV, and the figure as SVG and PNG.

    Args:
        folder: Folder of the files.
        estimates: The estimates.
        refused: Reason by method for methods without an estimate.
        reference: Method whose peak the others are divided by.

    Returns:
        The files.
    """
    from peftbench.report.figures import memory_bars

    folder.mkdir(parents=True, exist_ok=True)
    by_method = rows(estimates, reference)
    sheet = io.StringIO()
    writer = csv.DictWriter(sheet, fieldnames=list(by_method[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: sheet_cell(value) for key, value in row.items()} for row in by_method)
    files = {
        "estimate.md": f"{table(estimates, refused, reference)}\n".encode(),
        "estimate.csv": sheet.getvalue().encode(),
    }
    e = estimates[0]
    title = f"{e.model}: predicted memory of a training step"
    below = f"batch {e.setting.batch}, {e.setting.seq} tokens, {e.setting.dtype}; {UNVERIFIED}"
    files |= dict(memory_bars.draw("estimate", by_method, KINDS, title, below))
    for name, content in files.items():
        replace(folder / name, content)
    return [folder / name for name in files]
