"""Guidance in diffusers' pipelines."""
