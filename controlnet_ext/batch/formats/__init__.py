"""Formats that batches read and write: folders, lists, tables, tar files, videos."""
