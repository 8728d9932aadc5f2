"""The colors of a landscape: sky, ground, haze, trees and water, in linear light."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from tools.embedded_model.landscape_plan import GRASS, ROCK, SAND, SKY, SNOW, TREE, WATER, Plan
from tools.embedded_model.landscape_terrain import (
    distance_at,
    gather,
    make_noise,
    smoothstep,
    step_at,
    sun_direction,
)
from tools.embedded_model.trees import tree_sprites

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
