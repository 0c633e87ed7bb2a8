"""Independent implementations of our methods, each given our weights, on several architectures, in float64.

`registry` lists the counterparts, `compare` compares one with ours; `tests/methods/test_oracles.py` asserts, and
`scripts/oracle_table.py` prints, what it finds.
"""
