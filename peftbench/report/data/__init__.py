"""Records grouped into comparisons: rows, times, averages, verdicts."""
