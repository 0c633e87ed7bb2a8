"""What a run of an experiment will take on this machine: peak memory and time, forecast."""
