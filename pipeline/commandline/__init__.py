"""The commands that people run at a terminal. Light: nothing here imports torch, unsloth or transformers."""
