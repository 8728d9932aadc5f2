"""Preprocessors of other packages."""
