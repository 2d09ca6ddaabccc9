"""What this machine can do, what we make of it, and what others do: one run, one result.

A run goes through cases; each gives contestants (we in several layouts, transformers, llama.cpp)
the same random weights and the same prompts, in turns, every turn in fresh processes with a
declared number of threads. `llama bench` is the command.
"""
