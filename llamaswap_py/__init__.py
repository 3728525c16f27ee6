"""lswap: run many local language models on too little memory."""

__version__ = "0.2.0"
