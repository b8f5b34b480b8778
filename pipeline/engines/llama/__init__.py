"""GGUF models on the CPU, over llama.cpp's own C API."""
