"""Where a model runs: transformers (torch) and llama.cpp (GGUF on the CPU), behind one protocol."""
