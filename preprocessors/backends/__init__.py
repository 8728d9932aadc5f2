"""Runtimes of preprocessors' networks: torch, TorchScript, transformers, ONNX, TFLite."""
