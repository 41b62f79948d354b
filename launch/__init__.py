"""TorchX components that launch the trainer."""
