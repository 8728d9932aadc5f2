"""Bytes in and out: files, images, weights and downloads, with bounds against hostile input."""
