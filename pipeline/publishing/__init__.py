"""Publishing: exports to an Ollama server, adapters and exports to the Hugging Face Hub.

Light: nothing here imports torch, transformers or datasets. `ollama.prepare` and `hub.prepare` are the dry runs,
`ollama.run` and `hub.run` the stages of the jobs `publish_ollama` and `publish_hub`.
"""
