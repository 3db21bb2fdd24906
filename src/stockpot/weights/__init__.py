"""Files ↔ model: what a model folder holds, read and written without ever running code from it."""
