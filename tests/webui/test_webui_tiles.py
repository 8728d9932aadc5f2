"""Tiled Diffusion and scripts that draw tiles, beside the extension: stand-ins that call as they do."""

from __future__ import annotations

from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_webui import api
from tiny import control, random_image
from torch import Tensor
from webui_host import Request

from controlnet_ext import Span, Unit
from controlnet_ext.hosts.ldm.guide import BatchRows, guide_ldm
from controlnet_ext.models.kinds.controlnet import ControlNet

WIDTH, HEIGHT = 128, 64
PHOTO = np.asarray(random_image(0, WIDTH))[:HEIGHT]


class TiledRequest(Request):
    """A request whose whole latents go through the UNet tile by tile, as pkuliyi2015's Tiled Diffusion sends them.

    When the sampler is made it reads the hints of the control network that the script shows and cuts them into the
    tiles of each batch; before each UNet call it sets them, tile after tile with `rows` of each ("kdiff") or the other
    way round ("ddim"); rows of x are always tile after tile. `tells` False: it found no network.
    """

    tiles = ((0, 0, 8, 8), (4, 0, 12, 8), (8, 0, 16, 8))  # latents: left, top, right, bottom
    batches = ((0, 1), (2,))

    def sample(self, **_: Any) -> Tensor:
        params = self.script.latest_network.control_params if self.tells else ()
        cut = [
            [
                torch.cat([param.hint_cond[:, :, 8 * y : 8 * y_end, 8 * x : 8 * x_end] for x, y, x_end, y_end in batch])
                for batch in ([self.tiles[i] for i in batch] for batch in self.batches)
            ]
            for param in params
        ]
        whole_hints = [param.hint_cond for param in params]
        sampler = SimpleNamespace(sampler_extra_args={"cond": SimpleNamespace(batch=[[None]])})
        denoiser = SimpleNamespace(p=self, step=0, total_steps=self.steps, sampler=sampler)
        x = torch.randn(1, 4, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(7))
        for step in range(self.steps):
            denoiser.step, whole = step, x.repeat(2, 1, 1, 1)
            for function in list(self.host.callbacks):
                function(SimpleNamespace(denoiser=denoiser, x=whole))
            total, count = torch.zeros_like(whole), torch.zeros_like(whole)
            for number, batch in enumerate(self.batches):
                for param, tiles in zip(params, cut, strict=True):
                    part = tiles[number]
                    part = part.repeat_interleave(2, 0) if self.order == "kdiff" else part.repeat(2, 1, 1, 1)
                    param.hint_cond = part.to(torch.device("cpu"))
                boxes = [self.tiles[i] for i in batch]
                x_tile = torch.cat([whole[:, :, y:y_end, x0:x_end] for x0, y, x_end, y_end in boxes])
                t = torch.full((len(x_tile),), 900.0 - 200 * step)
                with torch.no_grad():
                    made = self.unet(x_tile, t, context=torch.ones(len(x_tile), 16, 32))
                for (x0, y, x_end, y_end), out in zip(boxes, made.chunk(len(boxes)), strict=True):
                    total[:, :, y:y_end, x0:x_end] += out
                    count[:, :, y:y_end, x0:x_end] += 1
                    self.outs.append((step, (x0, y, x_end, y_end), whole[:, :, y:y_end, x0:x_end].clone(), out))
            x = x - 0.1 * (total / count)[:1]
        for param, hint in zip(params, whole_hints, strict=True):
            param.hint_cond = hint
        return x


def draw(host: Any, tells: bool, order: str = "kdiff", **changes: Any) -> TiledRequest:
    from controlnet_ext.sdwebui.images import encode_png_base64
    from controlnet_ext.webui.script import ControlNetScript

    unit_of_photo = api(module="none", image=encode_png_base64(PHOTO), **changes)
    script = ControlNetScript()
    request = TiledRequest(
        host, host.model.model.diffusion_model, width=WIDTH, height=HEIGHT, script=script, tells=tells, order=order
    )
    request.outs, request.steps = [], 2
    script.process(request, unit_of_photo)
    request.sample()
    script.postprocess(request, SimpleNamespace(images=[]))
    assert script.latest_network is None
    return request


@pytest.mark.parametrize("order", ["kdiff", "ddim"])
def test_tiles_of_tiled_diffusion_have_their_parts_of_the_map(host: Any, order: str) -> None:
    request = draw(host, True, order)
    theirs = control()
    net = ControlNet.load(theirs.state_dict(), dict(theirs.config))
    spans = [Span(i / 2, (i + 1) / 2) for i in range(2)]
    for step, (left, top, right, bottom), x, out in request.outs:
        part = np.ascontiguousarray(PHOTO[8 * top : 8 * bottom, 8 * left : 8 * right])
        with guide_ldm(request.unet, [Unit(net, part)]) as guiding, torch.no_grad():
            guiding.begin(spans, 0)
            guiding.announce_step(BatchRows(spans[step], [0, 0], [True, False]))
            expected = request.unet(x, torch.full((2,), 900.0 - 200 * step), context=torch.ones(2, 16, 32))
        # batches of four rows and of two
        torch.testing.assert_close(out, expected, rtol=0, atol=2e-5)


def test_tiles_of_an_extension_that_does_not_tell_them_are_refused(host: Any) -> None:
    from controlnet_ext.webui.sampling import GuidanceError

    with pytest.raises(GuidanceError, match="more rows than the 2 that the host announced for the step"):
        draw(host, False)
    assert not host.callbacks


def test_noise_inversion_is_refused_in_a_sentence(host: Any) -> None:
    from controlnet_ext.webui.sampling import GuidanceError
    from controlnet_ext.webui.script import ControlNetScript

    class Inverts(Request):
        """It calls the UNet for noise that becomes the image, before the host's sampler announces a step."""

        def sample(self, **_: Any) -> Tensor:
            return self.unet(torch.zeros(1, 4, 8, 8), torch.zeros(1), context=torch.ones(1, 16, 32))

    request = Inverts(host, host.model.model.diffusion_model)
    ControlNetScript().process(request, api())
    with pytest.raises(GuidanceError, match="outside of a step that the host announced, as by noise inversion"):
        request.sample()


def test_tiled_diffusion_finds_the_extension_by_the_name_that_it_imports(host: Any) -> None:
    from controlnet_ext.webui.script import ControlNetScript
    from scripts.cldm import ControlNet as found

    assert found.__name__ == "ControlNet"
    assert hasattr(ControlNetScript, "latest_network") and ControlNetScript().title().lower() == "controlnet"


def test_the_stand_ins_hint_takes_memory_for_a_row_only(host: Any) -> None:
    from controlnet_ext.webui.sampling import TiledNetwork

    for param in TiledNetwork(SimpleNamespace(width=16384, height=8192)).control_params:
        assert param.hint_cond.shape == (1, 1, 8192, 16384) and param.hint_cond.untyped_storage().nbytes() <= 2**15


# -- the host's script SD upscale, and "only masked"

Grid = namedtuple("Grid", ["tiles", "tile_w", "tile_h", "image_w", "image_h", "overlap"])


def upscale(host: Any, batch_size: int = 1, **changes: Any) -> list[list[np.ndarray]]:
    """The maps of each tile, in the way of the host's scripts/sd_upscale.py: img2img of one tile after the other, whose
    results are all taken for tiles."""
    from controlnet_ext.webui.script import ControlNetScript

    image = random_image(5, 128)
    p = Request(host, host.model.model.diffusion_model, prompts=[1] * batch_size, resize_mode=0, steps=1, **changes)
    p.extra_generation_params["SD upscale overlap"] = 0
    grid = Grid([], 64, 64, 128, 128, 0)
    for y in (0, 64):
        grid.tiles.append([y, 64, [[x, 64, image.crop((x, y, x + 64, y + 64))] for x in (0, 64)]])
    work = [tile for _, _, row in grid.tiles for _, _, tile in row]
    shown = []
    for i in range(0, len(work), batch_size):
        p.init_images = work[i : i + batch_size]
        script, result = ControlNetScript(), SimpleNamespace(images=[])
        script.process(p, {**api(module="none"), **p.unit})
        p.sample()
        maps = p.controlnet_ext.collected_maps
        script.postprocess(p, result)
        assert not result.images
        shown.append(maps)
    return shown


def test_the_upscale_scripts_tiles_have_their_parts_of_a_units_own_image(host: Any) -> None:
    from controlnet_ext.sdwebui.images import encode_png_base64

    whole = np.asarray(random_image(6, 128))
    shown = upscale(host, unit={"image": encode_png_base64(whole)})
    parts = [whole[y : y + 64, x : x + 64] for y in (0, 64) for x in (0, 64)]
    assert all(np.array_equal(one, part) for (one,), part in zip(shown, parts, strict=True))


def test_the_upscale_scripts_tiles_are_their_own_images_where_a_unit_has_none(host: Any) -> None:
    whole = np.asarray(random_image(5, 128))
    for batch_size in (1, 2):
        shown = upscale(host, batch_size, unit={"image": None})
        assert np.array_equal(shown[0][0], whole[:64, :64])


def test_several_tiles_at_once_of_a_units_own_image_are_refused(host: Any) -> None:
    from controlnet_ext.webui.sampling import GuidanceError

    with pytest.raises(GuidanceError, match="unit 1: the upscale script draws several tiles at once"):
        upscale(host, 2, unit={})


def test_a_units_region_is_cropped_with_the_part_that_is_repainted() -> None:
    from controlnet_ext.sdwebui.build import HostInputs, InpaintCrop, resolve_unit
    from controlnet_ext.sdwebui.units import parse_webui_unit

    drawn = np.zeros((128, 128, 3), np.uint8)
    drawn[:, 64:] = 255
    from controlnet_ext.sdwebui.images import encode_png_base64

    unit = parse_webui_unit(api(effective_region_mask=encode_png_base64(drawn)), "unit 1")
    assert unit is not None
    square = resolve_unit(unit, HostInputs((64, 64), crop=InpaintCrop(128, 128, (32, 0, 96, 64))))
    assert square.region_mask is not None and square.region_mask.shape == (64, 64, 3)
    assert (square.region_mask[:, :32] == 0).all() and (square.region_mask[:, 32:] == 255).all()
    # a part that is narrower than the result lies in its middle, and its border goes on
    narrow = resolve_unit(unit, HostInputs((64, 64), crop=InpaintCrop(128, 128, (48, 0, 80, 64))))
    assert narrow.region_mask is not None and narrow.region_mask.shape == (64, 64, 3)
    assert (narrow.region_mask[:, :32] == 0).all() and (narrow.region_mask[:, 32:] == 255).all()
