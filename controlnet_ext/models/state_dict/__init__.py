"""State dicts: key names, the architecture that tensors show, strict loading, saving."""
