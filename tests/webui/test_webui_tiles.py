"""Tiled Diffusion and scripts that draw tiles, beside the extension: stand-ins that call as they do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ldm import UNetModel
from test_webui import api
from tiny import control, picture, unet
from torch import Tensor
from webui_host import Request, fresh, install

from controlnet_ext import Span, Unit
from controlnet_ext.hosts.ldm.guide import BatchRows, guide_ldm
from controlnet_ext.models.kinds.controlnet import ControlNet

WIDTH, HEIGHT = 128, 64
PHOTO = np.asarray(picture(0, WIDTH))[:HEIGHT]


@pytest.fixture
def host(monkeypatch: Any, tmp_path: Any) -> Any:
    folder = tmp_path / "models" / "ControlNet"
    folder.mkdir(parents=True)
    control().save_pretrained(folder / "net")
    with fresh():
        yield install(monkeypatch, tmp_path, UNetModel(unet()))


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
    request.outs = []
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
    spans = [Span(i / 4, (i + 1) / 4) for i in range(4)]
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
