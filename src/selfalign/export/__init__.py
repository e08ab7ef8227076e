"""What leaves a run: folders to train in elsewhere."""
