"""Running models: one engine for the chat host, validation, benchmarks and blind pairs, on transformers and PEFT."""
