"""From run specifications to records: executors, workers, the session and the training loop."""
