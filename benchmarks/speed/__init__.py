"""What `cetnet.benchmarks.speed` measures: the contenders, their data, and the machine's limits."""
