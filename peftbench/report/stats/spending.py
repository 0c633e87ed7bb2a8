"""stub until merged"""
from __future__ import annotations
def nominal_levels(looks, level, spending="obrien_fleming"):
    return tuple(level for _ in looks) if len(looks)<2 else tuple(level*0.1 for _ in looks)
