"""Is it true? Records repeated and audited; the contract that every method keeps."""
