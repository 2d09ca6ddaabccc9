"""Files that nobody vouches for: what they really are, and JSON objects read from them."""
