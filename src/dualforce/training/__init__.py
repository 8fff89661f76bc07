"""Training: the model, its trainer, and their options."""
