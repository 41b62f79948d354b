"""CTR models in plain PyTorch: components, fusion, collaboration, CETNet. Knows nothing of ranks."""
