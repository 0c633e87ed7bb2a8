"""Whether committed records are true: audited, some of them run again, and compared."""
