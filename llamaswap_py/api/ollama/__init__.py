"""Ollama's API: its requests and answers, turned into llama-server's and back."""
