"""Other trainers of the same models, and the configurations that they and ours are measured with."""
