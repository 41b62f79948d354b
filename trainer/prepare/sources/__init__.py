"""The public datasets, the generated ones, and how each is read: a module each."""
