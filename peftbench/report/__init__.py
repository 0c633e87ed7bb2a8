"""From records to tables, figures and pages. Reads records and nothing else."""
