"""Our landscapes beside the same ground under Blender's sky: `python -m tools.embedded_model.blender_landscapes
sheet.png --python BLENDER_PYTHON`, where that Python has the package bpy (4.5).

The sheet has our image above Blender's for the first treeless seeds. Blender gets the ground's points, its albedo, the
camera and the sun, and computes light with Cycles: a physical sky, shadows, light from all sides, reflections in water.
Of haze and clouds it gets none.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

COLUMNS = 384  # of the ground's points
SAMPLES = 32


def render_in_blender(scene_file: Path, image_file: Path, size: int) -> None:
    """Render the scene of an .npz with Cycles. Runs in Blender's Python."""
    import bpy

    scene_data = np.load(scene_file)
    points, albedo = scene_data["points"], scene_data["albedo"]
    rows, columns = points.shape[:2]
    bpy.ops.wm.read_factory_settings(use_empty=True)
    scene = bpy.context.scene
    index = np.arange(rows * columns).reshape(rows, columns)
    faces = np.stack([index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]], -1).reshape(-1, 4)
    mesh = bpy.data.meshes.new("ground")
    mesh.from_pydata(points.reshape(-1, 3).tolist(), [], faces.tolist())
    mesh.polygons.foreach_set("use_smooth", np.ones(len(faces), bool))
    colors = mesh.color_attributes.new("albedo", "FLOAT_COLOR", "POINT")
    colors.data.foreach_set("color", np.concatenate([albedo, np.ones_like(albedo[..., :1])], -1).ravel())
    ground = bpy.data.objects.new("ground", mesh)
    scene.collection.objects.link(ground)
    material = bpy.data.materials.new("ground")
    material.use_nodes = True
    shader = material.node_tree.nodes["Principled BSDF"]
    shader.inputs["Roughness"].default_value = 0.95
    attribute = material.node_tree.nodes.new("ShaderNodeAttribute")
    attribute.attribute_name = "albedo"
    material.node_tree.links.new(attribute.outputs["Color"], shader.inputs["Base Color"])
    mesh.materials.append(material)
    if np.isfinite(scene_data["water"]):
        _add_water(scene, float(scene_data["water"]))
    _add_sky(scene, float(scene_data["sun_height"]), float(scene_data["sun_side"]))
    _add_camera(scene, float(scene_data["focal"]), float(scene_data["horizon"]))
    scene.render.engine = "CYCLES"
    scene.cycles.samples, scene.cycles.use_denoising = SAMPLES, True
    scene.render.threads_mode, scene.render.threads = "FIXED", 1
    scene.render.resolution_x = scene.render.resolution_y = size
    scene.view_settings.view_transform = "AgX"
    scene.view_settings.exposure = -3.8
    scene.render.filepath = str(image_file)
    bpy.ops.render.render(write_still=True)


def _add_water(scene, level: float) -> None:
    import bpy

    bpy.ops.mesh.primitive_plane_add(size=60_000, location=(0, 0, level))
    material = bpy.data.materials.new("water")
    material.use_nodes = True
    shader = material.node_tree.nodes["Principled BSDF"]
    shader.inputs["Base Color"].default_value = (0.01, 0.03, 0.04, 1)
    shader.inputs["Roughness"].default_value = 0.03
    scene.objects[-1].data.materials.append(material)


def _add_sky(scene, height: float, side: float) -> None:
    import bpy

    scene.world = bpy.data.worlds.new("sky")
    scene.world.use_nodes = True
    nodes = scene.world.node_tree.nodes
    sky = nodes.new("ShaderNodeTexSky")
    sky.sky_type, sky.sun_elevation, sky.sun_rotation = "NISHITA", height, side
    scene.world.node_tree.links.new(sky.outputs["Color"], nodes["Background"].inputs["Color"])


def _add_camera(scene, focal: float, horizon: float) -> None:
    import bpy

    camera = bpy.data.cameras.new("camera")
    camera.sensor_width, camera.lens, camera.shift_y = 1.0, focal, horizon - 0.5
    camera.clip_start, camera.clip_end = 0.5, 60_000
    camera_object = bpy.data.objects.new("camera", camera)
    camera_object.rotation_euler = (math.pi / 2, 0, 0)  # looks along +y, up is +z
    scene.collection.objects.link(camera_object)
    scene.camera = camera_object


def export_scene(seed: int, path: Path) -> bool:
    """Write what Blender needs of our landscape of that seed; False, and nothing, where trees stand in it."""
    from tools.embedded_model.landscape_light import choose_ground
    from tools.embedded_model.landscape_plan import choose_plan
    from tools.embedded_model.landscape_terrain import build_grid, make_noise

    rng = np.random.default_rng((seed, 0x1A4D))
    plan = choose_plan(rng)
    if plan.trees is not None or plan.weather != "clear" or plan.time in ("dusk", "night"):
        return False
    grid, eye = build_grid(rng, plan, COLUMNS)
    steep = np.hypot(grid.slope_x, grid.slope_z)
    pixel = grid.distance / (plan.focal * COLUMNS)
    fine = make_noise(rng, grid.x, grid.distance, 16, 5, pixel * 1.5, gain=0.6)
    patch = make_noise(rng, grid.x, grid.distance, 130, 4, pixel * 1.5)
    albedo, _ = choose_ground(rng, plan, grid.height, steep, fine, patch, grid.distance)
    np.savez(
        path,
        points=np.stack([grid.x, grid.distance, grid.ground - eye], -1).astype(np.float32),
        albedo=np.clip(albedo, 0, 1).astype(np.float32),
        water=plan.water_level - eye if plan.water else np.inf,
        sun_height=plan.sun_height,
        sun_side=plan.sun_side,
        focal=plan.focal,
        horizon=plan.horizon,
    )
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sheet", type=Path)
    parser.add_argument("--python", required=True, help="a Python with bpy")
    parser.add_argument("--count", type=int, default=6)
    parser.add_argument("--size", type=int, default=256)
    options = parser.parse_args()
    import cv2

    from tools.embedded_model import landscapes

    pairs, seed = [], 0
    with tempfile.TemporaryDirectory() as folder:
        scene, image = Path(folder, "scene.npz"), Path(folder, "image.png")
        while len(pairs) < options.count:
            if export_scene(seed, scene):
                subprocess.run(
                    [options.python, __file__, str(scene), str(image), str(options.size)], check=True, stdout=2
                )
                pairs.append([landscapes.render(seed, options.size).pixels, cv2.imread(str(image))[..., ::-1]])
            seed += 1
    sheet = np.hstack([np.vstack(pair) for pair in pairs])
    cv2.imwrite(str(options.sheet), np.ascontiguousarray(sheet[..., ::-1]))


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1].endswith(".npz"):
        render_in_blender(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
