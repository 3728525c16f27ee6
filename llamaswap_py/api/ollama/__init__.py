"""Other protocols' requests and answers, turned into llama-server's and back. Pure."""
