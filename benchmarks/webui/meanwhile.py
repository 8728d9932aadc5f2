"""What happens while a guided image is made."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from .calls import Check, Webui, apart

LONG = 60  # steps of the image that is interrupted


def meanwhile(webui: Webui) -> Iterator[Check]:
    plain, guided = webui.draw(), webui.draw({})
    with ThreadPoolExecutor(1) as other:
        running = other.submit(webui.post_units, {}, steps=LONG)
        step = 0
        while step < 3 and not running.done():
            time.sleep(0.1)
            step = webui.get("/sdapi/v1/progress?skip_current_image=true")["state"]["sampling_step"]
        webui.post("/sdapi/v1/interrupt", {})
        status, answer = running.result()
    far = apart(plain.first, webui.draw().first)
    note = f"interrupted in step {step} of {LONG}: {status}, {len(answer.get('images', ()))} images; plain afterwards"
    yield Check(note, "equal" if far == 0 else f"{far} of 255 apart", far == 0 and status == 200)
    with ThreadPoolExecutor(4) as four:
        futures = [four.submit(webui.draw, *units) for units in ((), ({},), (), ({},))]
        first = [each.result().first for each in futures]
    far = max(apart(a, b.first) for a, b in zip(first, (plain, guided, plain, guided), strict=True))
    yield Check(
        "plain, guided, plain, guided asked for at once", "equal" if far == 0 else f"{far} of 255 apart", far == 0
    )
