"""Model files from Hugging Face: names, listings, what fits, downloads, and the shared cache."""
