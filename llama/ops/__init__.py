"""Pure functions on tensors: no parameters, no processes, no state."""
