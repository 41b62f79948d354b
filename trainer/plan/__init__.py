"""`cetnet plan` and `cetnet calibrate`: where tables would go on a cluster, and what a step would cost."""
