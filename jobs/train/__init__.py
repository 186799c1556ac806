"""Training: one loop and one engine (DeepSpeed) for every layout, one process included."""
