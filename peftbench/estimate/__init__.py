"""Predictions before a run: parameters, memory, operations and time, without the model's weights."""
