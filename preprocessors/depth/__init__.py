"""Preprocessors that make depth and normal maps."""
