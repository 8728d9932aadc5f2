"""Run by stable-diffusion-webui before it starts: installs what the extension lacks, and changes nothing else."""

import importlib.util

NEEDED = {"cv2": "opencv-python-headless", "safetensors": "safetensors", "PIL": "Pillow", "numpy": "numpy"}


def install():
    import launch

    for module, package in NEEDED.items():
        if importlib.util.find_spec(module) is None:
            try:  # without its dependencies, so that no version changes
                launch.run_pip(f"install --no-deps {package}", f"{package} for sd-webui-controlnet-ext")
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[-1:] or [""]
                print(f"sd-webui-controlnet-ext: {package} cannot be installed ({reason[0]}); pip install {package}")


install()
