"""The kinds of control model: each file is one, and a file added here is found by that alone."""
