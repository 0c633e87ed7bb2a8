"""Trained adapters in the formats of other libraries, and adapters of these in ours."""
