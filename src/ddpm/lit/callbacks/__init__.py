"""What is logged, saved and shown during training."""
