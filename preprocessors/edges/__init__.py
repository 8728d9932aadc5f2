"""Preprocessors that make edges, soft edges, lines and scribbles."""
