"""What sample.py does: one file for each task."""
