"""Hyper-parameter tuning for PyTorch over many GPUs and nodes."""
