"""All knowledge of llama.cpp: its binaries, options, output, answers and failures.

When llama.cpp changes, look here. `binaries.locate_engine(spec)` finds the llama-server to run.
"""
