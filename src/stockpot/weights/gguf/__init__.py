"""GGUF files ↔ bundles: the single-file form that llama.cpp runs."""
