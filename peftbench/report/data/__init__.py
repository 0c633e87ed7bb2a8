"""Groups records into comparisons: entries, times, averages and verdicts."""
