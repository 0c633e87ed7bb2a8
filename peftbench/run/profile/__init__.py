"""Step time and inference latency, measured in passes of their own after all runs."""
