"""Planning: from an experiment file to its runs. No torch, no network and no simulated step."""
