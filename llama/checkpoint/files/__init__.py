"""What lies in files: dense tensors with their place, containers read without trusting them."""
