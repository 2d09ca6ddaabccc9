"""The pieces of a block, cut across one tensor-parallel axis. Each takes one Communicator, `tp`.

With one rank a layer calls no collective. Class and argument names are Megatron's and fairscale's.
"""
