"""Independent implementations of our methods, each given our weights, on several architectures, in float64.

`registry` lists the counterparts, `compare` holds one of them against ours; `tests/test_oracles.py` asserts, and
`scripts/oracle_table.py` prints, what it finds.
"""
