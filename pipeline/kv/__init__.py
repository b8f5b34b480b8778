"""KV-cache policies as values: which entries of the cache stay, where, and in which precision."""
