"""Ranks and what passes between them. The only package that imports torch.distributed."""
