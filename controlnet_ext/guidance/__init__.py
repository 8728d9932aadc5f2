"""A unit acting on a denoising run, without any host and without any network."""
