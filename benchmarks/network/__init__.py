"""What the network costs, measured on hosts that are network namespaces of this machine."""
