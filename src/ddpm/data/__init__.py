"""Images as integers, and as real numbers in [-1, 1]."""
