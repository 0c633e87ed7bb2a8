"""`estimate --check`: predictions beside published measurements."""

from __future__ import annotations

import sys
from pathlib import Path

from peftbench.cli.options import print_json, say
from peftbench.errors import UserError, unknown


def check(groups: list[str], stored: bool, out: Path | None, as_json: bool) -> None:
    """Compare predictions with published measurements, group by group.

    Args:
        groups: Letters of the groups; all if there are none.
        stored: Take the predictions that came with the package, in place of simulating.
        out: Folder for the predictions and the figure.
        as_json: Print JSON.

    Raises:
        UserError: A group is unknown, or a prediction fails.
    """
    from peftbench.estimate.published import published_check, published_points, published_predict

    points = published_points.points()
    known = sorted({point.group for point in points})
    for group in groups:
        if group not in known:
            raise unknown("group", group, known, where="--check")
    chosen = [point for point in points if not groups or point.group in groups]
    if stored:
        predicted = published_predict.stored()
        missing = [point.id for point in chosen if not point.left_out and point.id not in predicted]
        if len(missing) == len(chosen):
            raise UserError("no stored predictions of these groups; leave --stored out")
    else:
        predicted = published_predict.predictions(
            chosen, lambda point, number, count: say(f"{number} of {count}: {point.id}", sys.stderr)
        )
    rivals = published_check.read_rivals()
    checked = published_check.check(chosen, lambda point: predicted.get(point.id), rivals)
    written = []
    if out is not None:
        written = [published_predict.write(predicted, out / "predictions.json")]
        for name, content in published_check.figure(chosen, checked):
            (out / name).write_bytes(content)
            written.append(out / name)
    if as_json:
        rows = {
            point.id: published_check.error(point, predicted[point.id]) for point in chosen if point.id in predicted
        }
        print_json({"errors_percent": rows, "predicted": predicted, "missing": list(checked.missing)})
        return
    say("\n\n".join([published_check.as_text(checked, rivals), *(f"wrote {path}" for path in written)]))
