"""What Tiled Diffusion imports to see whether the host has a ControlNet extension."""


class ControlNet:
    """A name to import; the script's `latest_network` has what Tiled Diffusion reads and sets."""
