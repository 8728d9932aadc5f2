"""The wire format of stable-diffusion-webui and sd-webui-controlnet, without HTTP and without the host."""
