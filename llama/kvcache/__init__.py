"""Where keys and values of past tokens live: block bookkeeping, and the tensors themselves."""
