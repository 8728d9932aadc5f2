"""Preprocessors that make segmentation maps and masks."""
