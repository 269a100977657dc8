"""Validation on the task: base and tuned on the same samples, measured, compared, and judged blind in pairs."""
