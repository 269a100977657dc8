"""Chatting with models: a host process that keeps one base model with its adapters resident, and its light client."""
