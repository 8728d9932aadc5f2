"""Landscapes rendered from a heightfield: mountains, hills, deserts and islands by season, light, water and weather.

A landscape depends on its seed and size only. The terrain is eroded noise on a grid of camera columns and geometric
distances; what each ray meets first follows from the running maximum of the elevations. Depth is true (metres along the
optical axis, SKY_DEPTH for the sky), so are normals and classes, and the caption says by construction what is there:
"landscape of snowy mountains by a lake with pine trees in winter at sunset under a cloudy sky".

`python -m tools.embedded_model.landscapes sheet.png` draws a contact sheet.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from tools.embedded_model.trees import TREE_KINDS, tree_sprites

STYLE = "landscape of"
CLASSES = ("sky", "water", "rock", "snow", "grass", "sand", "tree")
SKY, WATER, ROCK, SNOW, GRASS, SAND, TREE = range(len(CLASSES))
SKY_DEPTH = 50_000.0  # metres
TERRAINS = ("mountains", "hills", "desert", "islands")
SEASONS = ("spring", "summer", "autumn", "winter")
TIMES = {"morning": "in the morning", "day": "by day", "sunset": "at sunset", "dusk": "at dusk", "night": "at night"}
WEATHERS = {"clear": "under a clear sky", "cloudy": "under a cloudy sky", "fog": "in fog"}
NEAREST, MIDDLE, FARTHEST = 3.0, 120.0, 16_000.0  # metres
NEAR_STEPS, STEPS = 150, 800  # distances up to MIDDLE, and all; far ridges need the finer ones
FINE = 2  # rendered this much finer, then averaged

# sRGB of zenith, middle and horizon of the sky, of direct light and of what comes from all sides, and their strengths.
SKIES = {
    "morning": ((88, 138, 206), (170, 200, 228), (252, 226, 188), (255, 214, 160), (150, 170, 205), 2.3, 0.62),
    "day": ((52, 108, 196), (116, 168, 226), (200, 222, 242), (255, 244, 226), (150, 180, 220), 2.7, 0.7),
    "sunset": ((62, 78, 148), (196, 124, 138), (255, 164, 84), (255, 150, 84), (150, 130, 170), 2.2, 0.5),
    "dusk": ((34, 42, 92), (104, 84, 140), (222, 136, 138), (190, 140, 170), (110, 112, 170), 0.35, 0.5),
    "night": ((10, 16, 42), (24, 38, 82), (66, 88, 140), (150, 175, 230), (84, 106, 170), 0.9, 0.4),
}
GRASSES = {
    "spring": ((112, 164, 62), (146, 178, 74)),
    "summer": ((84, 130, 50), (128, 144, 66)),
    "autumn": ((150, 128, 62), (176, 140, 72)),
    "winter": ((150, 140, 104), (176, 168, 138)),
}
LEAVES = {
    "spring": ((110, 170, 60), (140, 185, 80), (240, 170, 195), (96, 150, 58)),
    "summer": ((60, 110, 40), (78, 124, 48), (52, 98, 44), (92, 130, 54)),
    "autumn": ((206, 92, 32), (226, 148, 40), (176, 52, 36), (150, 120, 48)),
    "winter": ((92, 84, 76), (84, 76, 70), (100, 92, 84), (88, 82, 78)),
}


@dataclass(frozen=True, eq=False)
class Landscape:
    """`pixels (H, W, 3)` RGB uint8; `depth (H, W)` float32 metres; `normals (H, W, 3)` float32 unit vectors (right, up,
    towards the camera), zero in the sky; `classes (H, W)` uint8, indices of CLASSES; words of the caption."""

    pixels: np.ndarray
    caption: str
    depth: np.ndarray
    normals: np.ndarray
    classes: np.ndarray
    season: str
    time: str


@dataclass(frozen=True)
class Plan:
    """What a landscape is made of; lengths in metres, angles in radians."""

    terrain: str
    season: str
    time: str
    weather: str
    water: str | None
    trees: str | None
    snow_line: float
    camera: float  # above the ground below it, or above the water
    horizon: float  # row of the horizon, as a share of the height
    focal: float  # in image widths
    sun_height: float
    sun_side: float  # azimuth, 0 straight ahead, to the right positive
    haze: float  # distance at which 63 % of the light is haze
    water_level: float


@dataclass(frozen=True, eq=False)
class Grid:
    """The terrain on camera columns and distances, each array (STEPS, columns) float32: `height` with the water's
    surface, `ground` without; normals as slopes `slope_x`, `slope_z`; `shadow` 0..1 is the share of direct light."""

    distance: np.ndarray
    x: np.ndarray
    height: np.ndarray
    ground: np.ndarray
    slope_x: np.ndarray
    slope_z: np.ndarray
    woods: np.ndarray
    shadow: np.ndarray


def vocabulary() -> set[str]:
    """All words that captions can hold."""
    text = f"{STYLE} snowy by a lake in the sea with trees and {' '.join(TERRAINS)} {' '.join(SEASONS)}"
    return set(" ".join([text, *TIMES.values(), *WEATHERS.values(), *TREE_KINDS]).split())


def render(seed: int, size: int = 256) -> Landscape:
    """The landscape of that seed, `size` pixels square: the same forever."""
    rng = np.random.default_rng((seed, 0x1A4D))
    for _ in range(8):
        landscape = _render_once(rng, size)
        sky, water = (np.mean(landscape.classes == kind) for kind in (SKY, WATER))
        if 0.08 < sky < 0.72 and (water > 0.04 or "islands" not in landscape.caption):
            break
    return landscape


def _render_once(rng: np.random.Generator, size: int) -> Landscape:
    plan = choose_plan(rng)
    fine = size * FINE
    grid, eye = build_grid(rng, plan, fine)
    hit = cast_rays(grid, plan, eye, fine)
    sky = cv2.resize(draw_sky(rng, plan, size), (fine, fine), interpolation=cv2.INTER_CUBIC)
    pixels, classes = shade_ground(rng, plan, grid, hit, sky, fine)
    depth = np.where(hit >= 0, distance_at(hit), np.float32(SKY_DEPTH))
    normals = compute_normals(grid, hit, classes)
    if plan.trees is not None:
        plant_trees(rng, plan, grid, eye, pixels, depth, normals, classes, sky)
    fill_water(rng, plan, eye, pixels, depth, classes, sky)
    image = cv2.resize(to_display(pixels, plan), (size, size), interpolation=cv2.INTER_AREA)
    pick = slice(FINE // 2, None, FINE)
    return Landscape(
        np.clip(np.rint(image), 0, 255).astype(np.uint8),
        describe(plan, np.bincount(classes.ravel(), minlength=len(CLASSES)) / classes.size),
        depth[pick, pick].copy(),
        normals[pick, pick].copy(),
        classes[pick, pick].copy(),
        plan.season,
        plan.time,
    )


def describe(plan: Plan, shares: np.ndarray) -> str:
    """The caption: what was planned, less what the classes' shares of the image say can hardly be seen."""
    parts = [STYLE, f"snowy {plan.terrain}" if shares[SNOW] > 0.04 else plan.terrain]
    if plan.water is not None and shares[WATER] > 0.02:
        parts.append({"lake": "by a lake", "sea": "in the sea"}[plan.water])
    if plan.trees is not None and shares[TREE] > 0.02:
        parts.append(f"with {plan.trees} trees")
    return " ".join([*parts, f"in {plan.season}", TIMES[plan.time], WEATHERS[plan.weather]])


def choose_plan(rng: np.random.Generator) -> Plan:
    """Draw what the landscape shows."""
    terrain = str(rng.choice(TERRAINS, p=[0.45, 0.28, 0.12, 0.15]))
    season = str(rng.choice(SEASONS)) if terrain != "desert" else "summer"
    time = str(rng.choice(list(TIMES), p=[0.18, 0.36, 0.24, 0.12, 0.1]))
    weather = str(rng.choice(list(WEATHERS), p=[0.48, 0.4, 0.12]))
    water = {"islands": "sea", "desert": None}.get(terrain, "lake" if rng.random() < 0.55 else None)
    trees = _choose_trees(rng, terrain, season)
    front = rng.choice([-1.0, 1.0])
    height, side = {
        "morning": (rng.uniform(0.25, 0.45), front * rng.uniform(0.9, 2.2)),
        "day": (rng.uniform(0.6, 1.0), front * rng.uniform(1.2, 2.6)),
        "sunset": (rng.uniform(0.05, 0.13), front * (rng.uniform(0, 0.38) if rng.random() < 0.65 else 2.0)),
        "dusk": (rng.uniform(0.02, 0.05), front * rng.uniform(0, 0.5)),
        "night": (rng.uniform(0.3, 0.55), front * rng.uniform(0.1, 2.4)),
    }[time]
    if terrain == "desert" and time == "day":
        height *= 0.55  # a high sun shows no dunes
    clear = {"clear": (7_000, 14_000), "cloudy": (5_000, 10_000), "fog": (900, 2_400)}[weather]
    winter = season == "winter" and terrain != "desert"
    return Plan(
        terrain,
        season,
        time,
        weather,
        water,
        trees,
        snow_line=rng.uniform(-60, 20) if winter else rng.uniform(350, 1500),
        camera=rng.uniform(3, 12) if water else rng.uniform(6, 25),
        horizon=rng.uniform(0.42, 0.6),
        focal=rng.uniform(0.85, 1.25),
        sun_height=height,
        sun_side=side,
        haze=rng.uniform(*clear),
        water_level=0.0,
    )


def _choose_trees(rng: np.random.Generator, terrain: str, season: str) -> str | None:
    if rng.random() < {"mountains": 0.25, "hills": 0.1, "desert": 0.65, "islands": 0.3}[terrain]:
        return None
    if terrain == "desert":
        return "palm"
    if terrain == "islands" and season == "summer":
        return "palm"
    return "pine" if rng.random() < (0.65 if terrain == "mountains" else 0.35) else "leafy"


# ---------------------------------------------------------------------------------------------------------- terrain


@cache
def _noise_tile() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Smooth periodic noise of 64x64 cells in -1..1 on 1024x1024 samples, and its derivatives per cell."""
    lattice = np.random.default_rng(20).uniform(-1, 1, (64, 64)).astype(np.float32)
    wide = np.pad(lattice, 4, mode="wrap")
    tile = cv2.resize(wide, None, fx=16, fy=16, interpolation=cv2.INTER_CUBIC)
    tile = cv2.GaussianBlur(tile, (0, 0), 5)
    tile /= np.abs(tile).max()
    down, right = np.gradient(tile, 1 / 16)
    crop = slice(64, 64 + 1024 + 1)
    return tuple(np.ascontiguousarray(a[crop, crop]) for a in (tile, right, down))


def _sample(array: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The tile's array at (u, v) in cells, which wrap around."""
    u, v = (16 * (c - 64 * np.floor(c / 64)) for c in (u, v))
    return cv2.remap(array, u, v, cv2.INTER_LINEAR)


def make_noise(rng, x, z, wave: float, octaves: int, footprint=0.0, gain: float = 0.5) -> np.ndarray:
    """Fractal noise about -1..1 of wavelength `wave` metres; octaves finer than the footprint fade away."""
    u0, v0, turn = rng.uniform(0, 64), rng.uniform(0, 64), rng.uniform(0, 2 * math.pi)
    tile = _noise_tile()[0]
    total, weight = np.zeros_like(x), 1.0
    for octave in range(octaves):
        scale = 2**octave / wave
        c, s = math.cos(turn + octave * 0.7) * scale, math.sin(turn + octave * 0.7) * scale
        fade = np.clip(1.5 - footprint * scale * 2.5, 0, 1) if octave else 1.0
        total += weight * fade * _sample(tile, c * x - s * z + u0 + 7 * octave, s * x + c * z + v0 + 5 * octave)
        weight *= gain
    return total


def _mountains(rng, x, z, wave: float, octaves: int, footprint) -> np.ndarray:
    """Mountains about 0..1: each octave is damped where the sum so far is steep, so slopes are smooth and ridges rough
    (Quilez, "Value noise derivatives"); the first octaves are ridged."""
    u0, v0, turn = rng.uniform(0, 64), rng.uniform(0, 64), rng.uniform(0, 2 * math.pi)
    tile, right, down = _noise_tile()
    warp = wave * 0.16
    wx, wz = (make_noise(rng, x, z, wave * 0.7, 2, footprint) for _ in range(2))
    x, z = x + warp * wx, z + warp * wz
    total, weight = np.zeros_like(x), 1.0
    dx, dz = np.zeros_like(x), np.zeros_like(x)
    for octave in range(octaves):
        scale = 2**octave / wave
        c, s = math.cos(turn + octave * 0.65) * scale, math.sin(turn + octave * 0.65) * scale
        u, v = c * x - s * z + u0 + 9 * octave, s * x + c * z + v0 + 4 * octave
        n, nu, nv = _sample(tile, u, v), _sample(right, u, v), _sample(down, u, v)
        if octave < 4:  # ridges
            sign = np.where(n > 0, -1.0, 1.0).astype(np.float32)
            soft = np.clip(np.abs(n) / 0.04, 0, 1)
            n, nu, nv = 1 - 1.9 * np.sqrt(n * n + 0.0009), 1.9 * nu * sign * soft, 1.9 * nv * sign * soft
        fade = np.clip(1.5 - footprint * scale * 2.5, 0, 1) if octave else 1.0
        dx += (nu * c + nv * s) / scale * 0.5
        dz += (nv * c - nu * s) / scale * 0.5
        total += weight * fade * n / (1 + 1.1 * (dx * dx + dz * dz))
        weight *= 0.5
    return total


def smoothstep(low: float, high: float, x: np.ndarray) -> np.ndarray:
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


@cache
def _distances() -> np.ndarray:
    """The STEPS distances of the grid in metres, geometric in two parts."""
    near = np.geomspace(NEAREST, MIDDLE, NEAR_STEPS, endpoint=False)
    return np.concatenate([near, np.geomspace(MIDDLE, FARTHEST, STEPS - NEAR_STEPS)]).astype(np.float32)


def distance_at(step: np.ndarray) -> np.ndarray:
    """Metres at a fractional index of the distances."""
    return np.interp(step, np.arange(STEPS), _distances()).astype(np.float32)


def step_at(distance: np.ndarray) -> np.ndarray:
    """The fractional index of a distance in metres."""
    return np.interp(distance, _distances(), np.arange(STEPS)).astype(np.float32)


def build_grid(rng: np.random.Generator, plan: Plan, columns: int) -> tuple[Grid, float]:
    """The terrain in front of the camera, and the camera's height above the zero of heights."""
    distance = np.repeat(_distances()[:, None], columns, 1)
    across = (np.arange(columns, dtype=np.float32) + 0.5 - columns / 2) / (plan.focal * columns)
    x = distance * across
    footprint = distance * 0.006
    ground = _HEIGHTS[plan.terrain](rng, plan, x, distance, footprint)
    woods = make_noise(rng, x, distance, 420, 5, footprint) + 0.35 * make_noise(rng, x, distance, 60, 3, footprint)
    if plan.trees is not None and plan.trees != "palm":
        steep = np.hypot(*_slopes(ground, distance, plan.focal * columns))
        woods = woods - 1.4 * np.clip(steep - 0.55, 0, None) - smoothstep(500, 800, ground) * 2
        woods = np.where(ground > 1.5, woods, -2)
        canopy = 9 + 7 * make_noise(rng, x, distance, 22, 2, footprint)  # far forests raise the ground by their crowns
        ground = ground + canopy * smoothstep(0.05, 0.2, woods) * smoothstep(350, 700, distance)
    else:
        woods = np.full_like(ground, -2)
    height = np.maximum(ground, plan.water_level) if plan.water else ground
    middle = slice(columns // 3, 2 * columns // 3)
    near = height[: NEAR_STEPS // (2 if plan.water else 1), middle]  # the camera stands above what is before it
    rise = near.max() if plan.water is None else max(near.max(), plan.water_level)
    eye = float(rise + plan.camera)
    slope_x, slope_z = _slopes(height, distance, plan.focal * columns)
    shadow = _cast_sun_shadows(plan, height, distance, plan.focal * columns)
    return Grid(distance, x, height, ground, slope_x, slope_z, woods, shadow), eye


def _slopes(height: np.ndarray, distance: np.ndarray, focal: float) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives of the height to the right and away from the camera, from the grid's neighbours."""
    along = np.gradient(height, _distances(), axis=0)
    across = np.gradient(height, axis=1)
    slope_x = across * focal / distance
    center = (np.arange(height.shape[1], dtype=np.float32) + 0.5 - height.shape[1] / 2) / focal
    slope_z = along - slope_x * center
    return slope_x, slope_z


def _mountain_heights(rng, plan, x, z, footprint):
    wave = rng.uniform(2400, 4200)
    begin = rng.uniform(500, 1300)
    rise = smoothstep(begin, begin + rng.uniform(2000, 4000), z)
    peaks = _mountains(rng, x, z, wave, 7, footprint)
    ground = _foreground(rng, plan, x, z, footprint)
    hills = 90 * smoothstep(250, 1600, z) * (make_noise(rng, x, z, 700, 5, footprint) + 0.15)
    range_ = rise * np.clip(peaks * 0.62 + 0.12, -0.05, None)
    return ground + hills + range_ * rng.uniform(0.15, 0.36) / (range_ / z).max()  # as high in the image as wanted


def _hill_heights(rng, plan, x, z, footprint):
    ground = _foreground(rng, plan, x, z, footprint)
    wave, high = rng.uniform(700, 1300), rng.uniform(60, 130)
    rolling = make_noise(rng, x, z, wave, 5, footprint, gain=0.36)
    far = (
        smoothstep(1500, 6000, z) * rng.uniform(150, 420) * (make_noise(rng, x, z, 2800, 6, footprint, gain=0.42) + 0.4)
    )
    return ground + smoothstep(60, 900, z) * high * (rolling + 0.35) + far


def _desert_heights(rng, plan, x, z, footprint):
    """Dunes: smooth on the wind's side, steep behind the crest."""
    wave, high = rng.uniform(130, 280), rng.uniform(28, 60)
    bend = 0.35 * make_noise(rng, x, z, wave * 2.2, 2, footprint) * wave
    turn = rng.uniform(0.5, 1.2) * rng.choice([-1, 1])
    phase = (x * math.cos(turn) + z * math.sin(turn) + bend) / wave
    saw = phase - np.floor(phase)
    crest = np.where(saw < 0.72, saw / 0.72, (1 - saw) / 0.28)
    crest = crest * crest * (3 - 2 * crest)
    size = np.clip(0.8 + 0.8 * make_noise(rng, x, z, wave * 3, 2, footprint), 0.15, 2) * (
        0.25 + 0.75 * smoothstep(20, 250, z)
    )
    fade = np.clip(1.6 - footprint / wave * 5, 0, 1)
    ripple = 0.07 * np.sin(phase * wave * 2.2) * np.clip(1.2 - footprint * 1.2, 0, 1)
    mesas = smoothstep(0.1, 0.22, make_noise(rng, x, z, 2600, 4, footprint)) * smoothstep(1800, 3000, z)
    return high * size * crest * fade + ripple + rng.choice([0, 1]) * mesas * rng.uniform(150, 300)


def _island_heights(rng, plan, x, z, footprint):
    base = 1.5 * make_noise(rng, x, z, rng.uniform(500, 1100), 6, footprint)
    peaks = _mountains(rng, x, z, 1500, 7, footprint)
    shape = base - rng.uniform(0.0, 0.25) - 0.4 * (1 - smoothstep(40, 250, z))
    if rng.random() < 0.6:  # a beach before the camera
        near = rng.uniform(14, 45) * (1 + 0.5 * make_noise(rng, x, z, 60, 3, footprint)) + rng.uniform(-0.6, 0.6) * x
        shape = np.maximum(shape, 0.06 * np.clip(1 - z / np.maximum(near, 3), -1, 1))
    rise = smoothstep(150, 2500, z)
    return np.where(shape > 0, 80 * shape + 560 * rise * shape * np.clip(0.4 + peaks, 0, 2), 60 * shape)


def _foreground(rng, plan, x, z, footprint):
    """A meadow, and a basin in it where there is a lake."""
    meadow = 7 * make_noise(rng, x, z, 180, 5, footprint, gain=0.42) + 7
    if plan.water is None:
        return meadow
    begin = rng.uniform(20, 130)
    width = rng.uniform(150, 420)  # half of the lake's length
    shore = 1 + 0.5 * make_noise(rng, x, z, 300, 5, footprint)
    side = rng.uniform(-0.3, 0.3) * z
    basin = np.exp(-(((z - begin - width) / (0.9 * width)) ** 4) - ((x - side) / (width * 1.4)) ** 4)
    return meadow + 1 - rng.uniform(22, 34) * basin * shore


_HEIGHTS = {
    "mountains": _mountain_heights,
    "hills": _hill_heights,
    "desert": _desert_heights,
    "islands": _island_heights,
}


def sun_direction(plan: Plan) -> np.ndarray:
    """Unit vector (right, up, away) towards the sun or moon."""
    flat = math.cos(plan.sun_height)
    return np.array(
        [flat * math.sin(plan.sun_side), math.sin(plan.sun_height), flat * math.cos(plan.sun_side)], np.float32
    )


def _cast_sun_shadows(plan: Plan, height: np.ndarray, distance: np.ndarray, focal: float) -> np.ndarray:
    """Share 0..1 of direct light at each point of the grid: a march towards the sun, half as fine as the grid."""
    coarse = height[::2, ::2]
    z = distance[::2, ::2]
    columns = np.arange(0, height.shape[1], 2, dtype=np.float32) + 0.5 - height.shape[1] / 2
    x = z * columns / focal
    right, up, away = sun_direction(plan)
    light = np.ones_like(coarse)
    for length in np.geomspace(0.012, 0.7, 18).astype(np.float32):
        reach = length * z
        there_z = z + away * reach
        behind = there_z < NEAREST
        there_z = np.maximum(there_z, NEAREST)
        column = (x + right * reach) / there_z * focal + height.shape[1] / 2 - 0.5
        blocking = cv2.remap(height, column, step_at(there_z), cv2.INTER_LINEAR, borderValue=-1e4)
        blocking = np.where(behind, -1e4, blocking)
        above = coarse + up * reach - blocking
        light = np.minimum(light, np.clip(above / (0.04 * reach) + 0.5, 0, 1))
    return cv2.resize(light, (height.shape[1], height.shape[0]), interpolation=cv2.INTER_LINEAR)


# ------------------------------------------------------------------------------------------------------------- rays


def cast_rays(grid: Grid, plan: Plan, eye: float, size: int) -> np.ndarray:
    """For each pixel the fractional index of the distance at which its ray meets the ground, -1 where it meets none."""
    rows = np.arange(size, dtype=np.float32) + 0.5
    rise = (plan.horizon * size - rows) / (plan.focal * size)  # tangent of each row's elevation
    tangents = (grid.height - eye) / grid.distance
    highest = np.maximum.accumulate(tangents, axis=0)
    hit = np.full((size, size), -1, np.float32)
    for column in range(size):
        ladder = highest[:, column]
        index = np.searchsorted(ladder, rise)
        is_hit = index < STEPS
        hit_index = index[is_hit]
        before = np.maximum(hit_index - 1, 0)
        # the crossing between two distances, linear in the tangent that the ray itself sees
        low, high = tangents[before, column], tangents[hit_index, column]
        share = np.clip((rise[is_hit] - low) / np.maximum(high - low, 1e-9), 0, 1)
        hit[is_hit, column] = np.where(hit_index > 0, before + share, 0)
    return hit


def gather(array: np.ndarray, hit: np.ndarray) -> np.ndarray:
    """A grid's array at the points that the rays meet."""
    columns = np.broadcast_to(np.arange(hit.shape[1], dtype=np.float32), hit.shape)
    return cv2.remap(array, columns, np.maximum(hit, 0), cv2.INTER_LINEAR)


def compute_normals(grid: Grid, hit: np.ndarray, classes: np.ndarray) -> np.ndarray:
    slope_x, slope_z = gather(grid.slope_x, hit), gather(grid.slope_z, hit)
    normals = np.dstack([-slope_x, np.ones_like(slope_x), slope_z])
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    normals[classes == WATER] = (0, 1, 0)
    normals[classes == SKY] = 0
    return normals.astype(np.float32)


# ------------------------------------------------------------------------------------------------------------ colors


def _linear(color: tuple[int, int, int]) -> np.ndarray:
    """sRGB 0..255 as linear light 0..1, by the power 2.2."""
    return (np.array(color, np.float32) / 255) ** 2.2


def to_display(pixels: np.ndarray, plan: Plan) -> np.ndarray:
    """Linear light to sRGB 0..255, bright parts rolled off."""
    bright = np.percentile(pixels.mean(2)[::4, ::4], 96)
    pixels = pixels * min(1.0, 0.82 / bright)  # exposure: snow in the sun keeps its shape
    soft = np.where(pixels < 0.6, pixels, 0.6 + 0.4 * (1 - np.exp(-(pixels - 0.6) / 0.4)))
    return 255 * np.clip(soft, 0, 1) ** (1 / 2.2)


def draw_sky(rng: np.random.Generator, plan: Plan, size: int) -> np.ndarray:
    """The sky in linear light: gradient, glow and disc of the sun or moon, stars, clouds: (H, W, 3)."""
    zenith, middle, low, light = (_linear(c) for c in SKIES[plan.time][:4])
    rows = (np.arange(size, dtype=np.float32)[:, None] + 0.5) / size
    columns = (np.arange(size, dtype=np.float32)[None] + 0.5) / size - 0.5
    up = np.clip((plan.horizon - rows) / plan.focal, -0.05, None)  # tangent of the elevation
    height = np.clip(up / 0.62, 0, 1)
    first = np.clip(height / 0.4, 0, 1)[..., None]
    second = np.clip((height - 0.3) / 0.7, 0, 1)[..., None]
    sky = low + first * (middle - low)
    sky = np.broadcast_to(sky + second * (zenith - sky), (size, size, 3)).copy()
    if plan.weather == "fog":
        gray = np.full(3, float((low + middle).mean() / 2), np.float32) + 0.35 * (low - low.mean())
        sky = sky + (0.8 - 0.3 * second) * (gray - sky)
    direction = sun_direction(plan)
    ray = np.dstack([columns / plan.focal + 0 * rows, up + 0 * columns, np.ones((size, size), np.float32)])
    ray /= np.linalg.norm(ray, axis=2, keepdims=True)
    angle = np.arccos(np.clip(ray @ direction, -1, 1))
    veil = {"clear": 1.0, "cloudy": 0.7, "fog": 0.25}[plan.weather]
    strength = {"morning": 0.5, "day": 0.35, "sunset": 1.0, "dusk": 0.35, "night": 0.12}[plan.time] * veil
    glow = strength * (0.55 * np.exp(-angle / 0.22) + 0.9 * np.exp(-((angle / 0.09) ** 1.2)))
    sky += glow[..., None] * light
    if plan.time == "night":
        stars = rng.random((size, size)) > 0.9988
        dots = cv2.GaussianBlur(stars.astype(np.float32) * rng.random((size, size)).astype(np.float32), (0, 0), 0.5)
        sky += (dots * 2.2 * np.clip(height * 3, 0, 1) * veil)[..., None]
    if plan.time != "dusk":
        radius = 0.028 if plan.time == "night" else 0.022
        disc = np.clip((radius - angle) * plan.focal * size / 1.5, 0, 1)[..., None]
        sky = sky + disc * veil * (light * (1.1 if plan.time == "night" else 2.5) - sky)
    return _add_clouds(rng, plan, sky, up, columns, angle)


def _add_clouds(rng, plan, sky, up, columns, angle):
    """Clouds on a plane far above, lit at their thin edges and near the sun."""
    cover = {"clear": rng.uniform(-0.5, -0.25), "cloudy": rng.uniform(-0.1, 0.25), "fog": -2.0}[plan.weather]
    if cover < -1:
        return sky
    light, ambient = (_linear(c) for c in SKIES[plan.time][3:5])
    lift = np.maximum(up, 0) + 0.055
    u, v = columns / lift * 1.0 + 0 * up, 1.0 / lift + 0 * columns
    x, z = (u * 1000).astype(np.float32), (v * 1000 / plan.focal).astype(np.float32)
    footprint = (1000 / lift**2 / len(sky) * 0.5 + 0 * columns).astype(np.float32)
    density = 1.6 * make_noise(rng, x, z, rng.uniform(1500, 3200), 6, footprint, gain=0.58) + cover
    density = density * smoothstep(0.0, 0.12, up)
    alpha = smoothstep(0.0, 0.4, density)[..., None] * 0.95
    thick = smoothstep(0.1, 0.9, density)[..., None]
    power = {"morning": 1.0, "day": 1.05, "sunset": 1.0, "dusk": 0.3, "night": 0.12}[plan.time]
    bright = light * power * (0.75 + 0.9 * np.exp(-angle / 0.35))[..., None]
    dark = ambient * power * 0.55 + sky * 0.25
    return sky + alpha * (bright + (0.25 + 0.75 * thick) * (dark - bright) * 0.8 - sky)


def _light(plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Direct and ambient light, linear."""
    _, _, _, light, ambient, direct, around = SKIES[plan.time]
    dim = {"clear": 1.0, "cloudy": 0.75, "fog": 0.35}[plan.weather]
    return _linear(light) * direct * dim * 0.62, _linear(ambient) * around * (1.5 - 0.4 * dim)


def _haze_color(plan: Plan, sky: np.ndarray) -> np.ndarray:
    """The sky's color just above the horizon, column by column, smooth: (1, W, 3)."""
    row = int(plan.horizon * len(sky))
    band = sky[max(row - len(sky) // 16, 0) : max(row, 1)].mean(0, keepdims=True)
    return cv2.GaussianBlur(band, (0, 0), len(sky) / 10, borderType=cv2.BORDER_REPLICATE)


def shade_ground(rng, plan, grid, hit, sky, size):
    """Colors and classes of what the rays meet, linear light; water is left flat, for _fill_water."""
    z = distance_at(np.maximum(hit, 0)).astype(np.float32)
    columns = (np.arange(size, dtype=np.float32)[None] + 0.5 - size / 2) / (plan.focal * size)
    x = z * columns
    height, ground = gather(grid.height, hit), gather(grid.ground, hit)
    slope_x, slope_z = gather(grid.slope_x, hit), gather(grid.slope_z, hit)
    pixel = z / (plan.focal * size)
    steep = np.hypot(slope_x, slope_z)
    up = 1 / np.sqrt(1 + steep * steep)
    direction = sun_direction(plan)
    lambert = np.clip((-slope_x * direction[0] + direction[1] - slope_z * direction[2]) * up, 0, 1)
    fine = make_noise(rng, x, z, 16, 5, pixel * 1.5, gain=0.6)
    patch = make_noise(rng, x, z, 130, 4, pixel * 1.5)
    fine = fine + 0.5 * make_noise(rng, x, z, 1.3, 4, pixel * 1.5, gain=0.7) * np.clip(1.3 - pixel * 3, 0, 1)
    albedo, classes = choose_ground(rng, plan, height, steep, fine, patch, z)
    woods = smoothstep(0.05, 0.2, gather(grid.woods, hit)) * smoothstep(350, 700, z)
    leaves = np.stack([_linear(c) for c in _tree_colors(plan)]).mean(0)
    albedo = albedo + woods[..., None] * (leaves * (0.75 + 0.5 * fine[..., None]) - albedo)
    classes[woods > 0.5] = TREE
    direct, ambient = _light(plan)
    shadow = gather(grid.shadow, hit)
    rough = 1 + 0.35 * fine * smoothstep(0.0, 0.6, steep)  # small bumps that the grid does not hold
    bounce = 0.55 + 0.45 * up
    pixels = albedo * (direct * (lambert * shadow * rough)[..., None] + ambient * bounce[..., None])
    pixels = _add_haze(plan, pixels, z, height, sky)
    classes[hit < 0] = SKY
    if plan.water:
        classes[(hit >= 0) & (ground < plan.water_level)] = WATER
    return np.where((hit < 0)[..., None], sky, pixels).astype(np.float32), classes


def _add_haze(plan, pixels, z, height, sky):
    thin = np.exp(-np.maximum(height, 0) / 900) if plan.weather != "fog" else np.exp(-np.maximum(height, 0) / 500)
    through = np.exp(-z / plan.haze * (0.35 + 0.65 * thin))[..., None]
    return _haze_color(plan, sky) * (1 - through) + pixels * through


def _tree_colors(plan: Plan) -> list[tuple[int, int, int]]:
    if plan.trees == "pine":
        return [(40, 74, 46), (52, 86, 50), (34, 66, 48), (58, 88, 60)]
    if plan.trees == "palm":
        return [(70, 120, 50), (88, 134, 58), (64, 108, 48), (100, 140, 60)]
    return list(LEAVES[plan.season])


def choose_ground(rng, plan, height, steep, fine, patch, z):
    """Albedo (linear) and class of bare ground by height and slope."""
    if plan.terrain == "desert":
        sand = [(222, 178, 116), (214, 150, 92), (232, 202, 158)][rng.integers(3)]
        rock = _linear((168, 96, 62)) * (1 + 0.25 * np.sin(height / 9 + 2 * fine))[..., None]
        cliff = smoothstep(0.75, 1.1, steep)[..., None]
        albedo = _linear(sand) * (1 + 0.06 * fine[..., None])
        return albedo + cliff * (rock - albedo), np.where(cliff[..., 0] > 0.5, ROCK, SAND).astype(np.uint8)
    first, second = (_linear(c) for c in GRASSES[plan.season])
    mix = np.clip(0.5 + 0.55 * patch + 0.3 * fine, 0, 1)[..., None]
    albedo = (first + mix * (second - first)) * (1 + 0.22 * fine[..., None])
    classes = np.full(height.shape, GRASS, np.uint8)
    if plan.season == "spring":
        albedo = _add_flowers(rng, albedo, fine, patch, z)
    stone = _linear([(118, 112, 108), (132, 116, 100), (104, 104, 112)][rng.integers(3)])
    layers = 1 + 0.09 * np.sin(height / 40 + 4 * patch) + 0.25 * fine
    bare = smoothstep(0.55, 0.95, steep + 0.18 * fine + 0.35 * smoothstep(400, 900, height))[..., None]
    albedo = albedo + bare * (stone * layers[..., None] - albedo)
    classes[bare[..., 0] > 0.5] = ROCK
    if plan.water:
        beach = (1 - smoothstep(0.6, 2.6 if plan.water == "sea" else 1.4, height + 0.4 * fine))[..., None]
        sand = _linear((226, 206, 160) if plan.water == "sea" else (150, 138, 116))
        albedo = albedo + beach * (sand * (1 + 0.1 * fine[..., None]) - albedo)
        classes[beach[..., 0] > 0.5] = SAND
    line = plan.snow_line + 90 * patch + 60 * fine
    soft = 25 if plan.season == "winter" else 120
    snow = smoothstep(0, soft, height - line) * (1 - smoothstep(0.75, 1.25, steep - 0.12 * fine))
    if plan.season == "winter":
        snow = np.maximum(snow, 0.93 * (1 - smoothstep(0.5, 0.9, steep + 0.2 * fine)) * smoothstep(-0.9, -0.4, fine))
        snow = snow * smoothstep(0.2, 0.9, height + 0.3 * fine) if plan.water else snow
    albedo = albedo + snow[..., None] * (_linear((244, 247, 252)) - albedo)
    classes[snow > 0.5] = SNOW
    return albedo, classes


def _add_flowers(rng, albedo, fine, patch, z):
    """Dots of one color in a meadow, in patches and near the camera."""
    color = _linear([(240, 220, 90), (235, 120, 150), (225, 225, 240), (170, 110, 210), (225, 70, 60)][rng.integers(5)])
    dots = rng.random(z.shape).astype(np.float32)
    share = smoothstep(0.0, 0.5, patch + 0.3) * np.clip(0.2 - z / 900, 0, 0.12)
    on = cv2.GaussianBlur((dots < share).astype(np.float32), (0, 0), 0.7)[..., None]
    return albedo + np.clip(on * 1.4, 0, 1) * (color - albedo)


# ------------------------------------------------------------------------------------------------------------- trees


def plant_trees(rng, plan, grid, eye, pixels, depth, normals, classes, sky):
    """Draw single trees from far to near into all arrays, in place."""
    size = len(pixels)
    sprites = tree_sprites("bare" if plan.trees == "leafy" and plan.season == "winter" else plan.trees)
    count = int(rng.choice([80, 260, 800], p=[0.35, 0.4, 0.25]))
    # as many per area everywhere would leave the foreground empty: one power less
    distance = rng.uniform(math.sqrt(34), math.sqrt(1000), count) ** 2
    column = rng.uniform(-0.08, 1.08, count) * size
    tall = rng.uniform(0.7, 1.3, count) * {"pine": 14, "leafy": 11, "palm": 10}[plan.trees]
    inside = np.clip(column, 0, size - 1).astype(np.float32)
    places = inside[None], step_at(distance)[None]
    ground, woods, slope_x, slope_z, shadow = (
        cv2.remap(a, *places, cv2.INTER_LINEAR)[0]
        for a in (grid.ground, grid.woods, grid.slope_x, grid.slope_z, grid.shadow)
    )
    grows = ground > (0.8 if plan.water else -1e3)
    if plan.trees == "palm":
        grows &= (ground < (14 if plan.terrain == "islands" else 1e3)) & (rng.random(count) < 0.4)
    else:
        grows &= (woods > rng.uniform(-0.5, 0.1)) & (np.hypot(slope_x, slope_z) < 0.7)
    colors = np.stack([_linear(c) for c in _tree_colors(plan)])
    direct, ambient = _light(plan)
    haze = _haze_color(plan, sky)[0]
    looks = rng.integers(0, 1 << 30, count)
    for i in np.argsort(-distance):
        if not grows[i]:
            continue
        row = (plan.horizon + plan.focal * (eye - ground[i]) / distance[i]) * size
        high = plan.focal * size * tall[i] / distance[i]
        if high < 3 or high > 0.62 * size:
            continue
        sprite = sprites[looks[i] % len(sprites)]
        through = math.exp(-distance[i] / plan.haze)
        color = colors[(looks[i] >> 8) % len(colors)] * (0.8 + 0.4 * ((looks[i] >> 12) % 64) / 64)
        snow = 0.75 if plan.season == "winter" and plan.trees == "pine" else 0.0
        tone = _TreeTone(color, direct * (0.25 + 0.75 * shadow[i]), ambient, haze[int(inside[i])], through, snow)
        _draw_tree(
            sprite, tone, sun_direction(plan), column[i], row, high, distance[i], pixels, depth, normals, classes
        )


@dataclass(frozen=True, eq=False)
class _TreeTone:
    """How one tree is lit, linear: its leaves' color, direct and ambient light, haze and how much gets through it."""

    color: np.ndarray
    direct: np.ndarray
    ambient: np.ndarray
    haze: np.ndarray
    through: float
    snow: float


def _draw_tree(sprite, tone, sun, column, row, high, distance, pixels, depth, normals, classes):
    """Paste a sprite, given as its levels, with its foot at (column, row), behind what is nearer."""
    size = len(pixels)
    height = max(3, round(high * 1.03))
    sprite = next((level for level in sprite[::-1] if len(level) >= height), sprite[0])
    width = max(2, round(height * sprite.shape[1] / sprite.shape[0]))
    left, top = round(column - width / 2), round(row - high)
    x0, x1, y0, y1 = max(left, 0), min(left + width, size), max(top, 0), min(top + height, size)
    if x0 >= x1 or y0 >= y1:
        return
    halves = [cv2.resize(half, (width, height), interpolation=cv2.INTER_AREA) for half in np.dsplit(sprite, 2)]
    small = np.dstack(halves)[y0 - top : y1 - top, x0 - left : x1 - left]
    alpha = small[..., 5] * (depth[y0:y1, x0:x1] > distance * 0.985)
    visible = alpha[..., None]
    facing = small[..., :3] / np.maximum(small[..., 5:], 1e-3)
    lambert = np.clip(facing @ np.array([sun[0], sun[1], -sun[2]], np.float32) * 0.7 + 0.3, 0, 1)
    wood, shade = (small[..., i] / np.maximum(small[..., 5], 1e-3) for i in (3, 4))
    albedo = tone.color + wood[..., None] * (_linear((96, 74, 56)) - tone.color)
    white = (tone.snow * np.clip(facing[..., 1] * 1.8, 0, 1) * (1 - wood))[..., None]
    albedo = albedo + white * (0.85 - albedo)
    lit = albedo * (tone.direct * (lambert * shade)[..., None] + tone.ambient * (0.35 + 0.65 * shade)[..., None])
    lit = tone.haze * (1 - tone.through) + lit * tone.through
    window = pixels[y0:y1, x0:x1]
    window += visible * (lit - window)
    solid = alpha > 0.5
    depth[y0:y1, x0:x1][solid] = distance
    normals[y0:y1, x0:x1][solid] = facing[solid] / np.maximum(
        np.linalg.norm(facing[solid], axis=1, keepdims=True), 1e-3
    )
    classes[y0:y1, x0:x1][solid] = TREE


# ------------------------------------------------------------------------------------------------------------- water


def fill_water(rng, plan, eye, pixels, depth, classes, sky):
    """Reflections in the water, in place: what stands at depth z appears mirrored at the waterline of that depth."""
    if not plan.water or not (classes == WATER).any():
        return
    size = len(pixels)
    rows, columns = (c.astype(np.int32) for c in np.nonzero(classes == WATER))
    z = depth[rows, columns]
    horizon, focal = plan.horizon * size, plan.focal * size
    top = int(rows.min())
    below = np.minimum(depth[top:], 4000)
    x = below * ((np.arange(size, dtype=np.float32) + 0.5 - size / 2) / focal)
    pixel = below * below / (focal * max(eye - plan.water_level, 1.0))
    wave = 5 if plan.water == "lake" else 9
    ripple = make_noise(rng, x, below * 0.35, wave, 4, pixel * 0.4, gain=0.6)[rows - top, columns]
    swell = ripple * np.clip(30 / z, 0.02, 1) * (0.35 if plan.water == "lake" else 1.0)
    mirror = 2 * horizon - rows + swell * 0.06 * size
    limit = size - 1
    source = np.clip(mirror, 0, limit).astype(np.int32)
    for _ in range(4):  # the waterline depends on the depth of what is seen, which depends on the waterline
        image_depth = depth[source, columns]
        line = horizon + focal * (eye - plan.water_level) / np.maximum(image_depth, z)
        source = np.clip(2 * line - rows + swell * 0.06 * size, 0, limit).astype(np.int32)
    for _ in range(3):  # off by a row at the shore: look a little higher
        source = np.where(classes[source, columns] == WATER, np.maximum(source - 2, 0), source)
    shift = np.clip(columns + (swell * 0.03 * size).astype(np.int32), 0, limit)
    image = pixels[source, shift]
    nearer = (depth[source, shift] < z * 0.98) | (classes[source, shift] == WATER)
    image = np.where(nearer[:, None], sky[np.clip(mirror, 0, int(horizon)).astype(np.int32), columns], image)
    slant = (eye - plan.water_level) / z + 0.25 * np.abs(swell)
    share = (0.1 + 0.85 * np.exp(-5.5 * np.clip(slant, 0, 1)))[:, None]
    direct, ambient = _light(plan)
    deep = _linear((24, 66, 86) if plan.water == "lake" else (16, 84, 112)) * (0.45 * direct + ambient)
    water = deep + share * (image * np.array([0.9, 0.95, 0.97], np.float32) - deep)
    direction = sun_direction(plan)
    aim = (
        np.abs((columns + 0.5 - size / 2) / focal - direction[0] / max(direction[2], 1e-3)) if direction[2] > 0 else 9.0
    )
    glitter = np.exp(-((aim / 0.1) ** 2)) * np.clip(ripple * 1.3 - 0.35, 0, 1) * {"fog": 0.1}.get(plan.weather, 0.9)
    water = water + glitter[:, None] * direct if plan.time != "dusk" else water
    through = np.exp(-z / plan.haze)[:, None]
    pixels[rows, columns] = _haze_color(plan, sky)[0, columns] * (1 - through) + water * through


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sheet", type=Path, help="image file for the contact sheet; captions go to stdout")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--depth", action="store_true", help="below each row its depth, near white")
    options = parser.parse_args()
    scenes = [render(seed, options.size) for seed in range(options.first, options.first + options.count)]
    print(*(scene.caption for scene in scenes), sep="\n")
    rows = []
    for i in range(0, len(scenes), 8):
        images = [scene.pixels for scene in scenes[i : i + 8]]
        rows.append(np.hstack(images + [np.full_like(images[0], 255)] * (8 - len(images))))
        if options.depth:
            near = [np.clip(255 - 62 * np.log10(scene.depth / 3), 0, 255) for scene in scenes[i : i + 8]]
            near += [np.full_like(near[0], 255)] * (8 - len(near))
            rows.append(np.repeat(np.hstack(near)[..., None], 3, 2).astype(np.uint8))
    cv2.imwrite(str(options.sheet), np.vstack(rows)[..., ::-1])


if __name__ == "__main__":
    main()
