"""Our own prediction of a published point: the step that its source measured, simulated."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from peftbench import cache
from peftbench.errors import UserError
from peftbench.estimate import memory_fit
from peftbench.estimate.count import ModelQuery
from peftbench.estimate.program import programs
from peftbench.estimate.published.published_points import FOLDER, PARTS, SIMULATED_AS, PublishedPoint
from peftbench.estimate.run.calibrate import CODE
from peftbench.estimate.step_estimate import Setting, StepEstimate, estimate
from peftbench.records.spec import digest

STORED = FOLDER / "predictions.json"


def setting(point: PublishedPoint) -> Setting:
    """Return how the step of a point runs; a longest context is searched from texts of one token."""
    parts = {key: value for key, value in point.parts.items() if key in PARTS}
    own = programs.program(SIMULATED_AS[point.program], parts)
    own = None if own is None else replace(own, given=())  # what a source says of its program is no demand
    padded = not point.parts["packed"] if "packed" in point.parts else None
    return Setting(point.batch, point.seq or 1, padded=padded, shards=int(point.parts.get("shards", 1)), program=own)


def predict(point: PublishedPoint) -> int | None:
    """Return the bytes, or the tokens of a longest context, that we predict for a point.

    Args:
        point: A point that is not left out.

    Returns:
        What the point measures; None if its model is not known here.

    Raises:
        UserError: The step cannot be simulated.
    """
    query, how = ModelQuery(point.model, task="generation"), setting(point)

    def at(changed: Setting) -> StepEstimate:
        return estimate(query, point.method, dict(point.hyper), changed)

    try:
        if point.measure == "longest_context":
            return memory_fit.fit(memory_fit.parsed_size(point.gpu), "seq", how, at).largest
        told = at(how)
    except UserError as error:
        if "hub" in str(error) or "unknown model" in str(error):
            return None
        raise
    by_measure = {"after_step": told.after_bytes, "reserved": told.reserved_bytes}
    return by_measure.get(point.measure, told.peak_bytes)


def predictions(
    points: Sequence[PublishedPoint], on_point: Callable[[PublishedPoint, int, int], None] = lambda *_: None
) -> dict[str, int]:
    """Return the prediction of each point that is not left out; answers are cached until code or packages change.

    Args:
        points: The points.
        on_point: Called with a point, its number and the number of all before it is predicted.
    """
    wanted = [point for point in points if not point.left_out]
    stores = cache.Stores()
    packages = cache.versions("torch", "transformers")
    store = stores.open("published", digest({"code": cache.code_key(*CODE), "packages": packages}))
    found: dict[str, int] = {}
    for number, point in enumerate(wanted, 1):
        question = digest(asdict(point))
        if question not in store.answers:
            on_point(point, number, len(wanted))
            store.put(question, predict(point))
            stores.save()  # a long check that breaks off is not lost
        if store.answers[question] is not None:
            found[point.id] = int(store.answers[question])
    return found


def stored(path: Path = STORED) -> dict[str, int]:
    """Return the predictions that came with the package.

    Raises:
        UserError: The file is missing or of another form.
    """
    try:
        return {name: int(value) for name, value in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"{path}: no predictions ({error}); write them with peftbench estimate --check --out DIR"
        ) from error


def write(predicted: Mapping[str, int], path: Path) -> Path:
    """Write predictions, as `stored` reads them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(sorted(predicted.items())), indent=0) + "\n", encoding="utf-8")
    return path
