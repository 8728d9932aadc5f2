"""Layers and blocks that several kinds of control model share."""
