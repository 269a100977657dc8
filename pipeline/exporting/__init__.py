"""From an adapter to files that others can run: merged weights, GGUF, and the proof that they behave as trained."""
