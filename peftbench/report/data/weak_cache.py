"""A result is computed once for each object that it is a result of, and is forgotten with that object."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar
from weakref import WeakKeyDictionary

Of = TypeVar("Of")
Result = TypeVar("Result")


def weak_cache(compute: Callable[[Of], Result]) -> Callable[[Of], Result]:
    """`compute`, called once for each object, which must be told apart by identity and must not change.

    The result may not refer to the object, or neither is ever freed.
    """
    results: WeakKeyDictionary[Of, Result] = WeakKeyDictionary()

    @wraps(compute)
    def computed(of: Of) -> Result:
        if of not in results:
            results[of] = compute(of)
        return results[of]

    return computed
