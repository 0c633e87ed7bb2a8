"""The calculator page: recorded training steps whose sizes are products of named dimensions, replayed in a browser."""
