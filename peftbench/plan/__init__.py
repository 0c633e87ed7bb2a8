"""From an experiment file to the runs it asks for. Pure: no torch, no network loaded, no step simulated."""
