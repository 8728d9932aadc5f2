"""Guidance in ldm's UNet, as stable-diffusion-webui and its like run it."""
