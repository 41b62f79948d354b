"""Where each embedding table lives: clusters, planner, plan table, sharders, first values of tables."""
