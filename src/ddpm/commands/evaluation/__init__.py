"""What evaluate.py computes: one file for each part of its result."""
