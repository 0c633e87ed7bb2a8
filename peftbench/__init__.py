"""peftbench: a benchmark of parameter-efficient fine-tuning that can be trusted."""

__version__ = "0.1.0"
