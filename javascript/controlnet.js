// What the ControlNet panel does in the browser alone: sizes, the count of units that are on, enabling a unit with its
// first image. By ids that controlnet_ext/webui/panel.py gives; works with gradio 3.41 and 4.40.
(function () {
    const id = (tab, name) => `script_${tab}_controlnet_${name}`;
    const part = (tab, name) => gradioApp().getElementById(id(tab, name));

    function setNumber(tab, name, value) {
        const input = gradioApp().querySelector(`#${tab}_${name} input[type=number]`);
        if (input) {
            input.value = value;
            updateInput(input);
        }
    }

    function shown(tab, unit) {  // gradio 4 has a canvas also where there is no image
        const box = part(tab, `image_${unit}`);
        return box.querySelector(".empty") ? null : box.querySelector("img, canvas");
    }

    function takeSize(tab, unit) {
        const image = shown(tab, unit);
        const width = image && (image.naturalWidth || image.width);
        const height = image && (image.naturalHeight || image.height);
        if (width && height) {
            setNumber(tab, "width", Math.round(width / 8) * 8);
            setNumber(tab, "height", Math.round(height / 8) * 8);
        }
    }

    function count(tab) {
        const panel = part(tab, "panel");
        const on = panel.querySelectorAll(`[id^="${id(tab, "enabled_")}"] input:checked`).length;
        const label = panel.querySelector(".label-wrap > span");
        const words = on ? `ControlNet (${on} on)` : "ControlNet";
        if (label.textContent !== words) {  // a change is an update of the page, after which the host calls again
            label.textContent = words;
        }
    }

    function watch(tab, unit) {
        const image = part(tab, `image_${unit}`);
        const enabled = part(tab, `enabled_${unit}`).querySelector("input");
        let had = false;
        new MutationObserver(() => {
            const has = shown(tab, unit) !== null;
            if (has && !had && !enabled.checked) {
                enabled.click();
            }
            had = has;
        }).observe(image, { childList: true, subtree: true });
        part(tab, `size_${unit}`).addEventListener("click", () => takeSize(tab, unit));
    }

    onUiLoaded(() => {
        for (const tab of ["txt2img", "img2img"]) {
            for (let unit = 0; part(tab, `image_${unit}`); unit++) {
                watch(tab, unit);
            }
        }
    });

    onAfterUiUpdate(() => {
        for (const tab of ["txt2img", "img2img"]) {
            if (part(tab, "panel")) {
                count(tab);
            }
        }
    });
})();
