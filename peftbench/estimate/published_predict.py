"""Our own prediction of a published point: the step that its source measured, simulated."""

from __future__ import annotations

from peftbench.errors import UserError
from peftbench.estimate import memory_fit, programs
from peftbench.estimate.count import ModelQuery
from peftbench.estimate.published_points import PARTS, SIMULATED_AS, PublishedPoint
from peftbench.estimate.step_estimate import Setting, StepEstimate, estimate


def setting(point: PublishedPoint) -> Setting:
    """Return how the step of a point runs; a longest context is searched from texts of one token."""
    own = programs.program(
        SIMULATED_AS[point.program], {key: value for key, value in point.parts.items() if key in PARTS}
    )
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
    return told.after_bytes if point.measure == "after_step" else told.peak_bytes
