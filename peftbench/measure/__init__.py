"""Instruments: memory, floating-point operations, time, background load, and probes of the trained network."""
