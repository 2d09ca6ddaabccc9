"""Starts one program on many ranks: `python -m launch`, installed as `llama-launch`.

Knows the machine and the rank layout, not the model.
"""
