"""Files of weights that change behind our back: against a recorded hash, and while a model made of them lives."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from networks import all_of, random_image, reference, step_for
from safetensors.torch import save_file
from test_weights import formats

from controlnet_ext import models
from controlnet_ext.files.weights import read_weights
from controlnet_ext.generation.recipe import ModelRef, find_control_files, hash_files, verify_hashes


def corruptions(content: bytes) -> list[bytes]:
    """44 of them: bits turned at 20 places from end to end, cut at ten, a tail of zeros at ten, and bytes added, taken
    out, doubled or exchanged."""
    size = len(content)
    turned = []
    for k in range(20):
        at = k * (size - 1) // 19
        turned.append(content[:at] + bytes([content[at] ^ 1 << k % 8]) + content[at + 1 :])
    cut = [content[: size * k // 10] for k in range(10)]
    zeroed = [content[: size * k // 10] + bytes(size - size * k // 10) for k in range(10)]
    half = size // 2
    moved = [content + b"\0", content[1:], content + content, content[half:] + content[:half]]
    return [*turned, *cut, *zeroed, *moved]


def test_a_recorded_hash_refuses_all_220_corruptions_in_one_line(tmp_path: Path) -> None:
    refused, unseen = 0, 0
    for name, content in formats().items():
        file = tmp_path / name
        file.write_bytes(content)
        source = ModelRef(str(file), hash_files(find_control_files(str(file))))
        verify_hashes(source, hash_files(find_control_files(str(file))), "--model")
        for corrupt in corruptions(content):
            assert corrupt != content
            file.write_bytes(corrupt)
            with pytest.raises(ValueError, match="'weights' of the model") as caught:
                verify_hashes(source, hash_files(find_control_files(str(file))), "--model")
            assert "\n" not in str(caught.value)
            refused += 1
            try:
                read_weights(file)
                unseen += 1
            except ValueError as error:
                assert "\n" not in str(error)
    print(f"{refused} corruptions refused, {unseen} of which only the hash tells")
    assert refused == 220 and unseen  # of formats without checksums


@torch.no_grad()
def test_a_file_overwritten_cut_or_gone_while_its_model_lives_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "net.safetensors"
    save_file(reference("SD1.5").state_dict(), file)
    net = models.load(file)
    step = step_for(net)
    before = all_of(net(step, net.hint(random_image())))

    def unchanged() -> bool:
        return all(torch.equal(a, b) for a, b in zip(all_of(net(step, net.hint(random_image()))), before, strict=True))

    with open(file, "r+b") as opened:
        opened.write(os.urandom(2**20))
    assert unchanged()
    os.truncate(file, 100)
    assert unchanged()
    file.unlink()
    assert unchanged()
