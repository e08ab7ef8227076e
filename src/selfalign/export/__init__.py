"""A run's models in the forms that others load, each loaded back and compared before it is said to be good."""
