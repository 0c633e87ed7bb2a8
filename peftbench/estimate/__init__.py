"""What a training step of any model takes, without its weights: one step simulated, on fake tensors."""
