"""Parts of evaluate.py's result: one file each."""
