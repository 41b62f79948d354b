"""How the cost of a training step grows, and what an ensemble costs beside its components alone."""
