"""Launching on clusters: TorchX components, jobs as plain files, studies as many jobs."""
