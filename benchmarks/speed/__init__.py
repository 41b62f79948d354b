"""What `benchmarks.throughput` measures: the contenders, their data, and the machine's limits."""
