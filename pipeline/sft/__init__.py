"""Supervised fine-tuning: training rows, checks before a run, checkpoints that a rerun resumes from, the loss curve."""
