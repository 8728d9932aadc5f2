"""A stage that ends its process. Apart from the tests, which a new process would import with all they need."""

import os


def doubled(lot):
    """Every text twice, but "b"."""
    if "b" in lot:
        os._exit(1)
    return [one * 2 for one in lot]
