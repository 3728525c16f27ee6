"""Ollama's API: requests are translated for llama-server, and its answers back."""
