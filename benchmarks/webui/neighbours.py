"""Other checkpoints, the refiner and LoRA, as far as the webui lists some."""

from __future__ import annotations

from collections.abc import Iterator

from controlnet_ext.maps.fidelity import canny_f1

from .calls import Check, Render, Webui, apart
from .guidance import MIN_GUIDED_F1


def neighbours(webui: Webui) -> Iterator[Check]:
    plain, guided = webui.draw(), webui.draw({})

    def check_score(what: str, render: Render) -> Check:
        score = canny_f1(guided.maps[0], render.first).within_1px
        differs = apart(render.first, guided.first)
        return Check(what, f"{score:.2f}, {differs} of 255 from without it", score > MIN_GUIDED_F1)

    now = webui.get("/sdapi/v1/options")["sd_model_checkpoint"]
    titles = [each["title"] for each in webui.get("/sdapi/v1/sd-models")]
    for other in [title for title in titles if title.partition(" ")[0] != now.partition(" ")[0]][:1]:
        name = other.partition(" ")[0]
        refined_render = webui.draw({}, refiner_checkpoint=other, refiner_switch_at=0.5)
        yield check_score(f"the refiner {name} from half of the steps on", refined_render)
        with webui.options(sd_model_checkpoint=other):
            yield check_score(f"the checkpoint {name}", webui.draw({}))
        far = apart(plain.first, webui.draw().first), apart(guided.first, webui.draw({}).first)
        yield Check("back at the first checkpoint: plain, guided", f"{far[0]} and {far[1]} of 255 apart", far == (0, 0))
    for lora in webui.get("/sdapi/v1/loras")[:1]:
        prompt = f"a blue blob and a yellow curve on a red ground <lora:{lora['name']}:1>"
        yield check_score(f"LoRA {lora['name']}", webui.draw({}, prompt=prompt))
        far = apart(plain.first, webui.draw().first)
        yield Check("plain after the LoRA", f"{far} of 255 apart", far == 0)
