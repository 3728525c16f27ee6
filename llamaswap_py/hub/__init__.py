"""Model files from Hugging Face: names, listings, headers, downloads, and the shared cache."""
