"""From a reader into the parameters of every rank, each byte read once on a host."""
