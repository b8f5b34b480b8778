"""Synthetic Chinese medical dialogues, generated from the hand-written tables in pipeline/nano/knowledge."""
