"""What publishers call things: one reader for each way to lay out a checkpoint."""
