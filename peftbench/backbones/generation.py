"""Generation without the settings that a checkpoint brings along."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def no_settings(net: Any) -> Iterator[None]:
    """Let ``net.generate`` know no setting but its own arguments.

    A checkpoint may bring a generation_config with forced or suppressed tokens, penalties, beams or least lengths.
    transformers takes each of its values that a call does not set.

    Args:
        net: A transformers network. Its generation_config is back afterwards.
    """
    from transformers import GenerationConfig

    own = net.generation_config
    net.generation_config = GenerationConfig()
    try:
        yield
    finally:
        net.generation_config = own
