"""What the agent calls: validate, one call into the pipeline, a small typed result."""
