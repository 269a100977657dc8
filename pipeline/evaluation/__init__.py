"""Statistics that validation, benchmarks and reports share, and the sentences they are told in."""
