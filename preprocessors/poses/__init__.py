"""Preprocessors that find people, faces and hands, and draw key points."""
