"""Model directories in transformers, on the CPU or a GPU."""
