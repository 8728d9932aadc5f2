"""Other checkpoints, the refiner and LoRA, as far as the webui lists some."""

from __future__ import annotations

from collections.abc import Iterator

from controlnet_ext.maps.fidelity import canny_f1

from .calls import Drawn, Seen, Webui, apart
from .guidance import GUIDED


def neighbours(webui: Webui) -> Iterator[Seen]:
    plain, guided = webui.drawn(), webui.drawn({})

    def scored(what: str, drawn: Drawn) -> Seen:
        score = canny_f1(guided.maps[0], drawn.first).within_1px
        differs = apart(drawn.first, guided.first)
        return Seen(what, f"{score:.2f}, {differs} of 255 from without it", score > GUIDED)

    now = webui.get("/sdapi/v1/options")["sd_model_checkpoint"]
    titles = [each["title"] for each in webui.get("/sdapi/v1/sd-models")]
    for other in [title for title in titles if title.partition(" ")[0] != now.partition(" ")[0]][:1]:
        name = other.partition(" ")[0]
        refined = webui.drawn({}, refiner_checkpoint=other, refiner_switch_at=0.5)
        yield scored(f"the refiner {name} from half of the steps on", refined)
        with webui.options(sd_model_checkpoint=other):
            yield scored(f"the checkpoint {name}", webui.drawn({}))
        far = apart(plain.first, webui.drawn().first), apart(guided.first, webui.drawn({}).first)
        yield Seen("back at the first checkpoint: plain, guided", f"{far[0]} and {far[1]} of 255 apart", far == (0, 0))
    for lora in webui.get("/sdapi/v1/loras")[:1]:
        asked = f"a blue blob and a yellow curve on a red ground <lora:{lora['name']}:1>"
        yield scored(f"LoRA {lora['name']}", webui.drawn({}, prompt=asked))
        far = apart(plain.first, webui.drawn().first)
        yield Seen("plain after the LoRA", f"{far} of 255 apart", far == 0)
