"""One file for each fine-tuning method, written from its paper; installed as `peftbench.methods`."""
