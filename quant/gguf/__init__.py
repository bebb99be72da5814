"""The GGUF container: read, planned, written by several threads, sharded."""
