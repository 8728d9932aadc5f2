"""What a landscape shows, drawn from a seed, and the caption that says so."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tools.embedded_model.trees import TREE_KINDS

STYLE = "landscape of"
CLASSES = ("sky", "water", "rock", "snow", "grass", "sand", "tree")
SKY, WATER, ROCK, SNOW, GRASS, SAND, TREE = range(len(CLASSES))
SKY_DEPTH = 50_000.0  # metres
TERRAINS = ("mountains", "hills", "desert", "islands")
SEASONS = ("spring", "summer", "autumn", "winter")
TIMES = {"morning": "in the morning", "day": "by day", "sunset": "at sunset", "dusk": "at dusk", "night": "at night"}
WEATHERS = {"clear": "under a clear sky", "cloudy": "under a cloudy sky", "fog": "in fog"}


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


def vocabulary() -> set[str]:
    """All words that captions can hold."""
    text = f"{STYLE} snowy by a lake in the sea with trees and {' '.join(TERRAINS)} {' '.join(SEASONS)}"
    return set(" ".join([text, *TIMES.values(), *WEATHERS.values(), *TREE_KINDS]).split())


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
