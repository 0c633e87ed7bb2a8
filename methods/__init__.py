"""One file for each fine-tuning method's paper; installed as `peftbench.methods`."""
