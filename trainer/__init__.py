"""The program: command line, configuration, data, training loop, metrics, checkpoints."""
