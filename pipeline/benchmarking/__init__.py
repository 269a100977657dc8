"""Benchmarks of a tuned model, its base and an export: exams by log-probabilities, all others by lm-eval."""
