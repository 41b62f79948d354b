"""Launching on clusters, in either of two ways; both resume, and run the same `cetnet train` under torchrun.

TorchX components (`components.py`, with `slurm/` for what TorchX's Slurm scheduler gets wrong) are for whoever
submits, watches and cancels from one command line, on Slurm, Kubernetes with Volcano or AWS Batch; `submit.py`
hands a study to them, a job per run. Rendered files (`render.py`) are for clusters that refuse TorchX's jobs or lack
what they need (heterogeneous jobs, Volcano), and for whoever keeps job files under version control and submits
them with the cluster's own tools.
"""
