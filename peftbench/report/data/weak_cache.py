"""A cache keyed by object: a result is computed once per object and freed with it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar
from weakref import WeakKeyDictionary

Of = TypeVar("Of")
Result = TypeVar("Result")


def weak_cache(compute: Callable[[Of], Result]) -> Callable[[Of], Result]:
    """Decorate a function of one object so that it runs once per object.

    Args:
        compute: a function of an immutable object that compares by identity. Its result must not refer to the object,
            or neither would ever be freed.

    Returns:
        The cached function.
    """
    results: WeakKeyDictionary[Of, Result] = WeakKeyDictionary()

    @wraps(compute)
    def computed(of: Of) -> Result:
        if of not in results:
            results[of] = compute(of)
        return results[of]

    return computed
