"""The embedded default: how its base model, scorer and sample dialogues are made."""
