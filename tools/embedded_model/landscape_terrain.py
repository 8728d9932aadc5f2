"""The ground of a landscape: noise, heights by terrain, the shadows that the sun casts on them, and where the rays of
the camera meet them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from tools.embedded_model.landscape_plan import SKY, WATER, Plan

NEAREST, MIDDLE, FARTHEST = 3.0, 120.0, 16_000.0  # metres
NEAR_STEPS, STEPS = 150, 800  # distances up to MIDDLE, and all; far ridges need the finer ones


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
