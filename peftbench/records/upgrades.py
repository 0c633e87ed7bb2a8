"""The format of record files, and the steps that upgrade a body of an older format.

Files never change: the checksum is verified on their bytes, and the steps change only the body in memory. No step
changes `spec` or `env`, because `spec_id` and `env_id` are their hashes; a finished run of any format counts as done.
(`spec.IDENTITY` is a separate number, part of the spec's hash.) Predictions are the same in every format.

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
    """Fill in the fields that were added during format 1, and rename `others_cpu_share` to `background_cpu_share`."""
    reference = body["spec"].get("reference", ProfileSpec.reference)
    body = {"reference": reference, **body}
    if body["kind"] == "profile":
        rows, time = body.get("rows"), {"product": None, **(body.get("time") or {})}
        time["background_cpu_share"] = time.pop("others_cpu_share", None)
        body = {"base": None, "sources": {}, **body, "time": time, "rows": rows and [_row(row) for row in rows]}
    return body


STEPS: dict[int, Callable[[Body], Body]] = {1: upgrade_1_to_2}


def problem(body: Any) -> str | None:
    """Return why a body cannot be upgraded to the current format; None if it can."""
    if not isinstance(body, Mapping) or type(body.get("schema")) is not int:
        return "it is not a peftbench record"
    if body["schema"] != FORMAT and body["schema"] not in STEPS:
        return f"its format is {body['schema']}, and this version of peftbench reads formats {min(STEPS)} to {FORMAT}"
    return None


def upgraded(body: Body) -> Body:
    """Upgrade a body to the current format.

    Args:
        body: a body without a `problem`.

    Raises:
        ValueError: the body lacks a field of its own format.
    """
    for number in range(body["schema"], FORMAT):
        try:
            body = {**STEPS[number](body), "schema": number + 1}
        except (AttributeError, KeyError, TypeError) as e:
            raise ValueError(f"it does not fit format {number} ({type(e).__name__}: {e})") from e
    return body


def _row(row: Body) -> Body:
    """Upgrade a row of a profile pass: null for missing fields, and latencies as a list of shapes."""
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
