"""How text from users is written, one module for each medium: labels, names of tasks and classes, reasons, models."""
