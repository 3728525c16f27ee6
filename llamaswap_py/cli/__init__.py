"""The command line: `lswap`. Each command imports what it needs when it runs."""
