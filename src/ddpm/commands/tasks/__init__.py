"""The tasks of sample.py, one file each."""
