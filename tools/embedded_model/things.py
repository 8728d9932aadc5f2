"""Scenes of glossy things: one to three Fluent 3D emoji with soft shadows on colored grounds.

The emoji come from `fetch.py`. A scene depends on its seed and size only. Captions say what there is, by construction:
"glossy render of a small red car and a dog on a checkered blue ground in front of a yellow wall". Depth is in metres:
the floor by perspective, a thing by its distance and a rounded belly.

`python -m tools.embedded_model.things WORLDS sheet.png` draws a contact sheet.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

STYLE = "glossy render of"
CATALOG = """
animals: rat 1f400, mouse 1f401, ox 1f402, cow 1f404, tiger 1f405, leopard 1f406, rabbit 1f407, cat 1f408,
 dragon 1f409, crocodile 1f40a, whale 1f433, snail 1f40c, snake 1f40d, horse 1f40e, ram 1f40f, goat 1f410, sheep 1f411,
 monkey 1f412, rooster 1f413, chicken 1f414, dog 1f415, pig 1f416, elephant 1f418, octopus 1f419, shell 1f41a,
 caterpillar 1f41b, ant 1f41c, bee 1f41d, ladybug 1f41e, fish 1f420, pufferfish 1f421, turtle 1f422, chick 1f425,
 bird 1f426, penguin 1f427, koala 1f428, poodle 1f429, camel 1f42a, dolphin 1f42c, frog 1f438, hamster 1f439,
 bear 1f43b, panda 1f43c, squirrel 1f43f, crab 1f980, lion 1f981, scorpion 1f982, turkey 1f983, unicorn 1f984,
 eagle 1f985, duck 1f986, bat 1f987, shark 1f988, owl 1f989, fox 1f98a, butterfly 1f98b, deer 1f98c, gorilla 1f98d,
 lizard 1f98e, rhino 1f98f, shrimp 1f990, squid 1f991, giraffe 1f992, zebra 1f993, hedgehog 1f994, dinosaur 1f996,
 kangaroo 1f998, llama 1f999, peacock 1f99a, hippo 1f99b, parrot 1f99c, raccoon 1f99d, lobster 1f99e, swan 1f9a2,
 mammoth 1f9a3, dodo 1f9a4, sloth 1f9a5, otter 1f9a6, flamingo 1f9a9, beaver 1f9ab, seal 1f9ad, beetle 1fab2
plants: pine 1f332, tree 1f333, palm 1f334, cactus 1f335, tulip 1f337, rose 1f339, hibiscus 1f33a, sunflower 1f33b,
 daisy 1f33c, clover 1f340, leaf 1f341, mushroom 1f344, bouquet 1f490, corn 1f33d, plant 1fab4, lotus 1fab7
food: tomato 1f345, eggplant 1f346, grapes 1f347, watermelon 1f349, tangerine 1f34a, lemon 1f34b, banana 1f34c,
 pineapple 1f34d, apple 1f34e, pear 1f350, peach 1f351, cherries 1f352, strawberry 1f353, hamburger 1f354, pizza 1f355,
 bread 1f35e, fries 1f35f, sushi 1f363, doughnut 1f369, cookie 1f36a, lollipop 1f36d, honey 1f36f, cake 1f382,
 pretzel 1f968, sandwich 1f96a, croissant 1f950, avocado 1f951, cucumber 1f952, potato 1f954, carrot 1f955, egg 1f95a,
 milk 1f95b, kiwi 1f95d, pancakes 1f95e, coconut 1f965, broccoli 1f966, cheese 1f9c0, cupcake 1f9c1, garlic 1f9c4,
 onion 1f9c5, waffle 1f9c7, popcorn 1f37f, taco 1f32e, mango 1f96d, blueberries 1fad0, pepper 1f336, candy 1f36c
vehicles: rocket 1f680, helicopter 1f681, locomotive 1f682, tram 1f68a, bus 1f68c, ambulance 1f691, firetruck 1f692,
 taxi 1f695, car 1f697, truck 1f69a, tractor 1f69c, ship 1f6a2, bicycle 1f6b2, airplane 2708,
 sailboat 26f5, scooter 1f6f5, sled 1f6f7, ufo 1f6f8, skateboard 1f6f9, pickup 1f6fb, motorcycle 1f3cd,
 racecar 1f3ce, van 1f690, satellite 1f6f0
buildings: house 1f3e0, castle 1f3f0, church 26ea, factory 1f3ed, tent 26fa, hut 1f6d6, temple 1f3db, statue 1f5fd,
 tower 1f5fc, fountain 26f2, mosque 1f54c, school 1f3eb, hospital 1f3e5, hotel 1f3e8, stadium 1f3df, volcano 1f30b,
 carousel 1f3a0
tools: hammer 1f528, wrench 1f527, axe 1fa93, saw 1fa9a, screwdriver 1fa9b, scissors 2702, key 1f511, lock 1f512,
 bell 1f514, bulb 1f4a1, candle 1f56f, umbrella 2602, guitar 1f3b8, violin 1f3bb, trumpet 1f3ba, saxophone 1f3b7,
 drum 1f941, accordion 1fa97, crown 1f451, hat 1f3a9, cap 1f9e2, ring 1f48d, diamond 1f48e, gift 1f381, balloon 1f388,
 football 26bd, basketball 1f3c0, baseball 26be, trophy 1f3c6, dice 1f3b2, kite 1fa81, chair 1fa91, bed 1f6cf,
 sofa 1f6cb, bathtub 1f6c1, door 1f6aa, book 1f4d5, camera 1f4f7, telephone 260e, television 1f4fa, radio 1f4fb,
 laptop 1f4bb, clock 23f0, hourglass 231b, compass 1f9ed, telescope 1f52d, microscope 1f52c, magnet 1f9f2, bomb 1f4a3,
 barrel 1f6e2, bucket 1faa3, basket 1f9fa, backpack 1f392, handbag 1f45c, suitcase 1f9f3, shoe 1f45f, boot 1f462,
 dress 1f457, shirt 1f455, glasses 1f453, heart 2764, star 2b50, snowman 26c4, planet 1fa90, pumpkin 1f383, ghost 1f47b,
 robot 1f916, alien 1f47d, mailbox 1f4eb, shield 1f6e1, teddy 1f9f8, pencil 270f, brush 1f58c, vase 1f3fa, teapot 1fad6,
 mug 1f37a, cup 2615, cloud 2601, moon 1f319, sun 2600
"""
FLYING = {
    *("bee", "butterfly", "bat", "ladybug", "bird", "eagle", "parrot", "balloon", "kite", "helicopter", "airplane"),
    *("ufo", "satellite", "rocket", "planet", "cloud", "moon", "sun", "star", "heart", "ghost"),
}
AS_THEY_ARE = {"ambulance", "firetruck", "taxi", "panda", "zebra", "penguin", "football", "alien", "snowman"}  # no tint

# Hue in degrees, factor of the saturation, exponent of the value (below 1: lighter). Things are tinted to these.
TINTS = {
    "red": (0, 1.1, 1.0),
    "orange": (26, 1.1, 0.8),
    "yellow": (50, 1.0, 0.55),
    "green": (125, 0.9, 1.0),
    "cyan": (186, 0.9, 0.8),
    "blue": (222, 1.1, 1.0),
    "purple": (275, 0.9, 1.0),
    "pink": (330, 0.62, 0.6),
}
GROUNDS = {  # sRGB of colored floors and walls
    "red": (206, 62, 58),
    "orange": (240, 146, 66),
    "yellow": (246, 212, 96),
    "green": (96, 170, 104),
    "cyan": (96, 200, 208),
    "blue": (72, 116, 208),
    "purple": (140, 96, 186),
    "pink": (244, 160, 190),
    "white": (240, 240, 238),
    "black": (44, 44, 50),
    "gray": (146, 148, 152),
    "brown": (150, 104, 70),
}
OUTDOORS = {"grass": ((104, 160, 60), (66, 118, 40)), "sand": ((232, 202, 146), (206, 168, 108))}
OUTDOORS |= {"snow": ((246, 248, 252), (212, 222, 236)), "water": ((60, 132, 180), (34, 92, 146))}
SKIES = {"a blue": ((92, 156, 226), (206, 228, 246)), "a gray": ((150, 158, 170), (212, 216, 222))}
SKIES |= {"an orange": ((226, 128, 92), (252, 216, 150)), "a pink": ((196, 132, 190), (252, 206, 196))}
SKY_DEPTH = 60.0  # metres
FOCAL = 1.2  # focal length in image widths
CAMERA_HEIGHT = 1.4  # metres above the floor


@dataclass(frozen=True, eq=False)
class Thing:
    """One thing of a scene: `mask (H, W)` bool is what is visible of it, `depth` its distance in metres, `color` the
    word that the caption gives it, or None for its own colors."""

    kind: str
    color: str | None
    mask: np.ndarray
    depth: float


@dataclass(frozen=True, eq=False)
class ThingScene:
    """`pixels (H, W, 3)` RGB uint8, `caption`, `depth (H, W)` float32 metres, `things` from far to near."""

    pixels: np.ndarray
    caption: str
    depth: np.ndarray
    things: tuple[Thing, ...]


@dataclass(frozen=True, eq=False)
class _Placement:
    """A thing in its place: `image (h, w, 4)` float32 0..255, its lower left corner, and the floor's row below."""

    kind: str
    color: str | None
    size_word: str
    image: np.ndarray
    left: int
    base: int
    floor: float
    depth: float


def article(words: str) -> str:
    """The indefinite article before these words."""
    return "an" if words[0] in "aeio" or words.startswith(("umbrella", "hourglass")) else "a"


def read_catalog() -> dict[str, dict[str, str]]:
    """Kinds of things and their code points, by category."""
    lines = CATALOG.replace("\n ", " ").strip().splitlines()
    groups = (line.partition(":") for line in lines)
    return {name: dict(entry.split() for entry in entries.split(",")) for name, _, entries in groups}


def vocabulary() -> set[str]:
    """All words that captions can hold."""
    text = f"{STYLE} a an and , on in front of wall under sky ground checkered striped wooden small big left right"
    kinds = {kind for group in read_catalog().values() for kind in group}
    return set(text.split()) | {"side", "the"} | kinds | set(TINTS) | set(GROUNDS) | set(OUTDOORS)


class ThingRenderer:
    """Renders scenes of the emoji in a folder, which it reads when they are first needed."""

    def __init__(self, emoji: Path):
        self._folder = emoji
        self._images: dict[str, np.ndarray] = {}
        self._codes = {kind: code for group in read_catalog().values() for kind, code in group.items()}

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        return tuple(self._codes)

    def emoji(self, kind: str) -> np.ndarray:
        """The emoji of a kind, cut to what is visible: (h, w, 4) uint8 RGBA."""
        if kind not in self._images:
            code = self._codes[kind]
            names = [f"{code}.webp", f"{code}-fe0f.webp"]
            file = next((self._folder / name for name in names if (self._folder / name).exists()), None)
            if file is None:
                raise FileNotFoundError(f"no emoji {names[0]} in {self._folder}: run fetch.py first")
            image = cv2.cvtColor(cv2.imread(str(file), cv2.IMREAD_UNCHANGED), cv2.COLOR_BGRA2RGBA)
            rows, columns = (np.flatnonzero((image[..., 3] > 8).any(axis)) for axis in (1, 0))
            self._images[kind] = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return self._images[kind]

    def render(self, seed: int, size: int = 256) -> ThingScene:
        """The scene of that seed, `size` pixels square: the same forever."""
        rng = np.random.default_rng((seed, 0x7419))
        count = int(rng.choice([1, 2, 3], p=[0.4, 0.4, 0.2]))
        horizon, wall = size * rng.uniform(0.18, 0.32), rng.uniform(6, 8.5)
        pixels, depth, place = _draw_ground(rng, size, horizon, wall)
        placements = self._place_things(rng, count, size, horizon, wall)
        lean, light = rng.choice([-1, 1]) * rng.uniform(0.2, 0.8), rng.uniform(0.3, 0.5)
        for thing in placements:
            pixels = _cast_shadow(pixels, thing, lean, light)
        things = []
        for thing in placements:
            alpha = _paste(pixels, depth, thing)
            things = [Thing(t.kind, t.color, t.mask & (alpha < 0.5), t.depth) for t in things]
            things.append(Thing(thing.kind, thing.color, alpha > 0.5, thing.depth))
        pixels *= _vignette(rng, size)
        caption = f"{STYLE} {_name_things(rng, placements, size)} {place}"
        return ThingScene(np.clip(np.rint(pixels), 0, 255).astype(np.uint8), caption, depth, tuple(things))

    def _place_things(self, rng: np.random.Generator, count: int, size: int, horizon: float, wall: float):
        """`count` things of different kinds, far to near, each with most of it visible."""
        kinds = [str(kind) for kind in rng.choice(self.kinds, count, replace=False)]
        looks = [self._choose_look(rng, kind) for kind in kinds]
        colors = [_choose_color(rng, image, kind) for kind, image in zip(kinds, looks, strict=True)]
        looks = [image if c is None else tint(image, c) for image, c in zip(looks, colors, strict=True)]
        for _ in range(200):
            placements = [
                _place(rng, kind, color, image, count, size, horizon, wall)
                for kind, color, image in zip(kinds, colors, looks, strict=True)
            ]
            placements.sort(key=lambda thing: -thing.depth)
            if all(_share_visible(placements, i, size) > 0.72 for i in range(count)):
                return placements
        return placements[-1:]

    def _choose_look(self, rng: np.random.Generator, kind: str) -> np.ndarray:
        image = self.emoji(kind)
        return image[:, ::-1] if rng.random() < 0.5 else image


def main_hue(image: np.ndarray) -> tuple[float, float]:
    """The hue in degrees that most of the colored pixels have, and the share of all visible pixels that have it."""
    visible = image[image[..., 3] > 128][:, :3]
    hsv = cv2.cvtColor(visible[None].astype(np.float32) / 255, cv2.COLOR_RGB2HSV)[0]
    weight = (hsv[:, 1] > 0.25) & (hsv[:, 2] > 0.2)
    bins = np.bincount((hsv[weight, 0] / 10).astype(int) % 36, minlength=36)
    near = sum(np.roll(bins, shift) for shift in (-2, -1, 0, 1, 2))
    best = int(near.argmax())
    return best * 10 + 5.0, float(near[best] / max(len(visible), 1))


def tint(image: np.ndarray, color: str) -> np.ndarray:
    """Turn the main hue of an emoji (h, w, 4) to that of a color word; far hues and grays stay as they are."""
    hue, saturation, exponent = TINTS[color]
    own, _ = main_hue(image)
    hsv = cv2.cvtColor(image[..., :3].astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    away = (hsv[..., 0] - own + 180) % 360 - 180
    share = np.clip((60 - np.abs(away)) / 20, 0, 1) * np.clip(hsv[..., 1] / 0.2, 0, 1)
    new = hsv.copy()
    light = image[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32)
    brightest = np.percentile(light[(share > 0.5) & (image[..., 3] > 128)], 90)
    shading = np.clip(light / max(brightest, 1), 0, 1.1)  # hue and saturation carry much of it: keep it in the value
    new[..., 0] = (hue + away * 0.35) % 360
    new[..., 1] = np.clip(hsv[..., 1] * saturation, 0, 0.9)
    new[..., 2] = np.clip(hsv[..., 2] ** exponent * (0.5 + 0.47 * shading), 0, 1)
    rgb, plain = (cv2.cvtColor(c, cv2.COLOR_HSV2RGB) for c in (new, hsv))
    mixture = plain + share[..., None] * (rgb - plain)
    return np.dstack([np.rint(mixture * 255).astype(np.uint8), image[..., 3]])


def _choose_color(rng: np.random.Generator, image: np.ndarray, kind: str) -> str | None:
    """A color word for half of the things that have one main hue."""
    color = str(rng.choice(list(TINTS)))
    wants_tint = rng.random() < 0.5
    return color if wants_tint and kind not in AS_THEY_ARE and main_hue(image)[1] > 0.55 else None


def _place(rng, kind, color, image, count, size, horizon, wall) -> _Placement:
    """A thing somewhere on the floor, between the wall and the camera."""
    meters = rng.uniform(0.9, 1.9) if count == 1 else rng.uniform(0.65, 1.35)
    lower, upper = (0.9, 1.9) if count == 1 else (0.65, 1.35)
    share = (meters - lower) / (upper - lower)
    word = "small" if share < 0.25 and rng.random() < 0.6 else "big" if share > 0.75 and rng.random() < 0.6 else ""
    farthest = horizon + FOCAL * size * CAMERA_HEIGHT / wall
    floor = rng.uniform(farthest + 0.1 * size, 0.95 * size)
    depth = FOCAL * size * CAMERA_HEIGHT / (floor - horizon)
    scale = meters * FOCAL * size / depth / max(image.shape[:2])
    scale = min(scale, 0.8 * size / max(image.shape[:2]))
    height, width = (max(8, round(length * scale)) for length in image.shape[:2])
    weighted_by_alpha = image.astype(np.float32)
    weighted_by_alpha[..., :3] *= weighted_by_alpha[..., 3:] / 255
    small = cv2.resize(weighted_by_alpha, (width, height), interpolation=cv2.INTER_AREA)
    lift = rng.uniform(0.2, 0.6) * FOCAL * size / depth if kind in FLYING else 0
    base = int(max(min(round(floor - lift), size - 2), height + 2))
    left = int(rng.integers(2, max(3, size - width - 2)))
    return _Placement(kind, color, word, small, left, base, floor, depth)


def _share_visible(placements: list[_Placement], index: int, size: int) -> float:
    """The share of a thing that the nearer ones leave visible, by rectangles on a coarse grid."""
    thing = placements[index]
    mask = np.zeros((size, size), bool)
    _window(mask, thing)[...] = _alpha_inside(thing, size) > 0.5
    total = mask.sum()
    for nearer in placements[index + 1 :]:
        _window(mask, nearer)[_alpha_inside(nearer, size) > 0.5] = False
    return mask.sum() / max(total, 1)


def _window(array: np.ndarray, thing: _Placement) -> np.ndarray:
    """The part of an array (H, W, ...) that a thing covers, as a view."""
    height, width = thing.image.shape[:2]
    top = thing.base - height
    return array[max(top, 0) : thing.base, thing.left : thing.left + width]


def _alpha_inside(thing: _Placement, size: int) -> np.ndarray:
    """Alpha 0..1 of the part that lies in the image."""
    height, width = thing.image.shape[:2]
    return thing.image[max(height - thing.base, 0) :, : min(width, size - thing.left), 3] / 255


def _draw_ground(rng: np.random.Generator, size: int, horizon: float, wall: float):
    """Floor and wall or sky: pixels (H, W, 3) float32, depth (H, W) float32, and how the caption calls them."""
    rows = np.arange(size, dtype=np.float32)[:, None] + 0.5
    columns = np.arange(size, dtype=np.float32)[None] + 0.5
    outdoors = rng.random() < 0.3
    distance = 40.0 if outdoors else wall
    with np.errstate(divide="ignore"):
        floor_depth = FOCAL * size * CAMERA_HEIGHT / np.maximum(rows - horizon, 1e-3)
    z = np.minimum(floor_depth, distance) * np.ones_like(columns)
    x = (columns - size / 2) * z / (FOCAL * size)
    edge = horizon + FOCAL * size * CAMERA_HEIGHT / distance
    if outdoors:
        pixels, place = _draw_outdoors(rng, size, x, z, edge, rows)
        depth = np.where(rows < edge, np.float32(SKY_DEPTH), z)
    else:
        pixels, place = _draw_room(rng, size, x, z, edge, rows, columns)
        depth = z
    return pixels, depth.astype(np.float32), place


def _draw_room(rng, size, x, z, edge, rows, columns):
    """A studio: one color, the floor bending into the wall; or a room: a floor and a wall of two colors."""
    names = list(GROUNDS)
    floor_color = str(rng.choice(names))
    pattern = str(rng.choice(["", "checkered", "striped", "wooden"], p=[0.6, 0.15, 0.13, 0.12]))
    floor = np.array(GROUNDS["brown" if pattern == "wooden" else floor_color], np.float32)
    floor = floor + rng.uniform(-10, 10, 3).astype(np.float32)
    two = pattern != "" or rng.random() < 0.45
    wall_color = str(rng.choice([n for n in names if n != floor_color])) if two else floor_color
    wall = (
        np.array(GROUNDS[wall_color], np.float32) + rng.uniform(-10, 10, 3).astype(np.float32) if two else floor * 0.9
    )
    mix = _floor_pattern(rng, pattern, x, z)[..., None]
    other = floor * 0.74 if floor.mean() > 90 else floor + 42
    ground = floor + mix * (other - floor)
    glow = np.exp(-(((columns / size - rng.uniform(0.3, 0.7)) / 0.5) ** 2) - ((rows / size - 0.2) / 0.45) ** 2)
    backdrop = wall * (0.86 + 0.2 * glow[..., None])
    light = 0.9 + 0.16 * np.exp(-(((z - z.min()) / 2.5) ** 2))
    soft = size * (0.01 if two else 0.12)
    blend = 1 / (1 + np.exp(-np.clip((rows - edge) / soft, -30, 30)))[..., None]
    pixels = backdrop + blend * (ground * light[..., None] - backdrop)
    if two:
        skirting = np.exp(-(((rows - edge - 0.012 * size) / (0.02 * size)) ** 2))[..., None]
        pixels = pixels * (1 - 0.22 * skirting)
    floor_name = "wooden" if pattern == "wooden" else f"{pattern} {floor_color}".strip()
    place = f"on {article(floor_name)} {floor_name} ground"
    if two:
        place += f" in front of {article(wall_color)} {wall_color} wall"
    return pixels.astype(np.float32), place


def _floor_pattern(rng: np.random.Generator, pattern: str, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Share 0..1 of the floor's second color; far lines fade before they flicker."""
    if pattern == "":
        return np.zeros_like(x)
    angle = rng.uniform(0, 2 * math.pi) if pattern != "wooden" else 0.0
    period = rng.uniform(0.7, 1.3)
    u = (x * math.cos(angle) + z * math.sin(angle)) / period
    v = (z * math.cos(angle) - x * math.sin(angle)) / period
    width = np.maximum(np.abs(np.gradient(z, axis=0)), z / (FOCAL * len(x))) / period * 2.5
    if pattern == "wooden":
        board = np.floor(u * 3)
        shade = np.sin(board * 12.9898) * 43758.5453 % 1
        gap = np.clip(1 - np.abs(u * 3 - np.rint(u * 3)) / np.maximum(0.06, width), 0, 1)
        grain = 0.12 * np.sin(v * 9 + shade * 40 + 2 * np.sin(u * 21))
        return np.clip(0.55 * shade + 0.8 * gap + grain, 0, 1)
    waves = np.sin(2 * math.pi * u) * (np.sin(2 * math.pi * v) if pattern == "checkered" else 1)
    slope = np.maximum(2 * math.pi * width, 0.02)
    return np.clip(0.5 + waves / slope, 0, 1)


def _draw_outdoors(rng, size, x, z, edge, rows):
    """A meadow, a beach, snow or water below a sky."""
    kind = str(rng.choice(list(OUTDOORS)))
    sky = str(rng.choice(list(SKIES), p=[0.5, 0.15, 0.2, 0.15]))
    first, second = (np.array(c, np.float32) for c in OUTDOORS[kind])
    stretch = {"grass": (9, 5), "sand": (5, 4), "snow": (2, 2), "water": (1.2, 5)}[kind]
    noise = _ground_noise(rng, x * stretch[0], z * stretch[1])
    ground = first + noise[..., None] * (second - first)
    top, bottom = (np.array(c, np.float32) for c in SKIES[sky])
    height = np.clip(rows / edge, 0, 1)[..., None] ** 1.3
    backdrop = np.broadcast_to(top + height * (bottom - top), (size, size, 3))
    columns = np.arange(size, dtype=np.float32)[None] / size
    clouds = _ground_noise(rng, columns * 7 + 0 * rows, rows / size * 16 + 0 * columns)
    backdrop = backdrop + (np.clip(clouds - 0.5, 0, 1) * 2.5)[..., None] * (255 - backdrop) * 0.8
    haze = np.exp(-z / 30)[..., None]
    ground = bottom * 0.9 + haze * (ground - bottom * 0.9)
    blend = 1 / (1 + np.exp(-np.clip((rows - edge) / (size * 0.006), -30, 30)))[..., None]
    return (backdrop + blend * (ground - backdrop)).astype(np.float32), f"on {kind} under {sky} sky"


def _ground_noise(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Smooth noise 0..1 at points (u, v): three octaves of a random lattice that repeats."""
    lattice = cv2.GaussianBlur(rng.random((256, 256)).astype(np.float32), (0, 0), 1.0, borderType=cv2.BORDER_REFLECT)
    lattice = (lattice - lattice.min()) / (lattice.max() - lattice.min())
    total = np.zeros_like(u, np.float32)
    for octave, share in ((1, 0.5), (2.3, 0.3), (5.1, 0.2)):
        a, b = ((c * octave + 100 * octave).astype(np.float32) for c in (u, v))
        total += share * cv2.remap(lattice, a % 255, b % 255, cv2.INTER_LINEAR)
    return total


def _cast_shadow(pixels: np.ndarray, thing: _Placement, lean: float, strength: float) -> np.ndarray:
    """A long soft shadow to one side and a dark one where the thing stands."""
    size = len(pixels)
    height, width = thing.image.shape[:2]
    alpha = thing.image[..., 3]
    lift = max(thing.floor - thing.base, 0)
    shade = np.zeros((size, size), np.float32)
    weak = 0.55 if lift > 4 else 1.0
    for tall, skew, blur, share in ((0.3, lean, 0.035, strength), (0.1, 0.1 * lean, 0.014, 0.75 * strength)):
        margin = width * (0.03 if tall == 0.1 else 0)
        # patch (u, v) -> image: the base keeps its width, the top leans to the side and lies flat
        matrix = np.array(
            [
                [(width - 2 * margin) / width, -skew, thing.left + margin + skew * height + skew * lift * 0.5],
                [0, tall, thing.floor - tall * height + 0.012 * size],
            ],
            np.float32,
        )
        cast = cv2.warpAffine(alpha, matrix, (size, size), flags=cv2.INTER_LINEAR) / 255
        cast = cv2.GaussianBlur(cast, (0, 0), blur * size * (1.3 if lift > 4 else 1))
        shade = 1 - (1 - shade) * (1 - share * weak * cast)
    blue_tone = np.array([0.92, 0.95, 1.0], np.float32)  # what is left in the shadow is a little blue
    return pixels * (1 - shade[..., None] / blue_tone * 0.95)


def _paste(pixels: np.ndarray, depth: np.ndarray, thing: _Placement) -> np.ndarray:
    """Put a thing into pixels and depth in place; return its alpha (H, W) 0..1."""
    size = len(pixels)
    inside = _alpha_inside(thing, size)
    colors = thing.image[-inside.shape[0] :, : inside.shape[1], :3]
    window = _window(pixels, thing)
    window[...] = window * (1 - inside[..., None]) + colors
    solid = (inside > 0.5).astype(np.uint8)
    round_ = cv2.distanceTransform(np.pad(solid, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    meters = max(thing.image.shape[:2]) * thing.depth / (FOCAL * size)
    belly = np.sqrt(np.clip(round_ / max(round_.max(), 1), 0, 1)) * 0.25 * meters
    target = _window(depth, thing)
    target[...] = np.where(solid > 0, thing.depth - belly, target)
    alpha = np.zeros((size, size), np.float32)
    _window(alpha, thing)[...] = inside
    return alpha


def _vignette(rng: np.random.Generator, size: int) -> np.ndarray:
    """Light from one side and darker corners: (size, size, 1) factors."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    side = rng.uniform(-0.06, 0.06)
    return (1.02 + side * x - rng.uniform(0.02, 0.08) * (x * x + y * y))[..., None]


def _name_things(rng: np.random.Generator, placements: list[_Placement], size: int) -> str:
    """The things in random order, each with its size, color and kind; a single one with its side."""
    names = []
    for index in rng.permutation(len(placements)):
        thing = placements[index]
        words = " ".join(word for word in (thing.size_word, thing.color, thing.kind) if word)
        names.append(f"{article(words)} {words}")
    if len(placements) == 1:
        middle = (placements[0].left + placements[0].image.shape[1] / 2) / size
        if abs(middle - 0.5) > 0.17:
            names[0] += f" on the {'left' if middle < 0.5 else 'right'} side"
        return names[0]
    return f"{', '.join(names[:-1])} and {names[-1]}"


def draw_sheet(scenes: list, columns: int = 8) -> np.ndarray:
    """Scenes side by side."""
    images = [scene.pixels for scene in scenes]
    images += [np.full_like(images[0], 255)] * (-len(images) % columns)
    return np.vstack([np.hstack(images[i : i + columns]) for i in range(0, len(images), columns)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what fetch.py filled")
    parser.add_argument("sheet", type=Path, help="image file for the contact sheet; captions go to stdout")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--size", type=int, default=256)
    options = parser.parse_args()
    renderer = ThingRenderer(options.folder / "emoji")
    scenes = [renderer.render(seed, options.size) for seed in range(options.first, options.first + options.count)]
    print(*(scene.caption for scene in scenes), sep="\n")
    cv2.imwrite(str(options.sheet), draw_sheet(scenes)[..., ::-1])


if __name__ == "__main__":
    main()
