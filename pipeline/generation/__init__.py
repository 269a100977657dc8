"""Examples written by another model: a job against Ollama or any endpoint that speaks OpenAI's protocol."""
