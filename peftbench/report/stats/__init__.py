"""The mathematics of intervals, tests and ranks; knows no records' files."""
