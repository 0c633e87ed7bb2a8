"""A training step on tensors without numbers: its timeline of bytes and kernels."""
