"""The format of record files, and the steps that bring a body of an older format up to today's.

A file stays as it was written: its checksum is verified on those bytes, and a step then changes what was read. No step
touches `spec` or `env`, because `spec_id` and `env_id` are their hashes: a finished run of any format still counts as
done. (`spec.IDENTITY` is the number in that hash, and another matter.) Predictions are the same in every format.

To change the format, add one to FORMAT and a step for the format before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from peftbench.records.spec import ProfileSpec

FORMAT = 2  # the number in a file's `schema`

Body = dict[str, Any]

_ROW_LACKS = (
    "split_seconds",
    "tokens",
    "tokens_per_second",
    "flops",
    "flops_per_second",
    "product_share",
    "shape",
    "merge_seconds",
    "switch_seconds",
)


def upgrade_1_to_2(body: Body) -> Body:
    """Fill in what the first format came to have in time, and name the share of other programs as it is called now."""
    reference = body["spec"].get("reference", ProfileSpec.reference)
    body = {"reference": reference, **body}
    if body["kind"] == "profile":
        rows, time = body.get("rows"), {"product": None, **(body.get("time") or {})}
        time["background_cpu_share"] = time.pop("others_cpu_share", None)
        body = {"base": None, "sources": {}, **body, "time": time, "rows": rows and [_row(row) for row in rows]}
    return body


STEPS: dict[int, Callable[[Body], Body]] = {1: upgrade_1_to_2}


def problem(body: Any) -> str | None:
    """Why no step leads from `body` to today's format; None where they do."""
    if not isinstance(body, Mapping) or type(body.get("schema")) is not int:
        return "it is not a peftbench record"
    if body["schema"] != FORMAT and body["schema"] not in STEPS:
        return f"its format is {body['schema']}, and this version of peftbench reads formats {min(STEPS)} to {FORMAT}"
    return None


def upgraded(body: Body) -> Body:
    """The body in today's format: the steps from its own format on, in order.

    Raises ValueError for a body that lacks what a step reads.
    """
    for number in range(body["schema"], FORMAT):
        try:
            body = {**STEPS[number](body), "schema": number + 1}
        except (AttributeError, KeyError, TypeError) as e:
            raise ValueError(f"it does not fit format {number} ({type(e).__name__}: {e})") from e
    return body


def _row(row: Body) -> Body:
    """A configuration of a profile pass: null for what was not measured yet, latencies as a list of shapes."""
    row = {**dict.fromkeys(_ROW_LACKS), **row}
    if row.get("ratio"):
        rounds = row["step_seconds"]["n"]
        row["ratio"] = {"low": None, "high": None, "n": rounds, **row["ratio"]}
    if isinstance(row.get("latency"), Mapping):  # by batch size, at the task's median length
        row["latency"] = [_cell(int(batch), at) for batch, at in row["latency"].items() if at]
    return row


def _cell(batch: int, at: Body) -> Body:
    merged = at.get("merged")
    return {
        "phase": "forward",
        "batch": batch,
        "length": None,
        "typical": True,
        "unmerged": _passes(at["unmerged"]),
        "merged": merged and _passes(merged),
    }


def _passes(seconds: Body) -> Body:
    return {"samples": [], "p95": None, "ratio": None, **seconds}
