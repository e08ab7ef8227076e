"""A run's models and data in the forms that other programs take, and folders to train in elsewhere."""
