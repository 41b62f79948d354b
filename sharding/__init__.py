"""Where each embedding table lives: topology, planner, plan report, sharders, sparse optimizers."""
