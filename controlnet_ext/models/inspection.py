"""The facts about a file of control weights.

Canny and depth ControlNets have the same tensors, so the kind of map that a published file reads is known by its hash.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any

from ..files.safetensors import list_parts
from ..maps.control_map import MAP_KINDS, normalize_kind
from . import MAP_METADATA_KEY, ControlFile

# Who states the hashes
KRITA_SOURCE = "Acly/krita-ai-diffusion @ 7586cfe121cc, ai_diffusion/presets/models.json"
HORDE_SOURCE = "Haidra-Org/AI-Horde-image-model-reference @ 46fdd9e3cd50, controlnet.json"

# By kind of map: what the file is called where it is published, its sha256
_KRITA_HASHES = {
    "inpaint": {
        "control_v11p_sd15_inpaint_fp16": "677a4fe351edecd40cd0d7cc210a8686b59d4e55207317f12319ef746a7a5a89",
    },
    "tile": {
        "control_lora_rank128_v11f1e_sd15_tile_fp16": (
            "cec00369e99cfed1cec97e1124cf3220df7a99e45354eaa1e3350c485e65154f"
        ),
        "noob-sdxl-controlnet-tile.fp16": "d6d676f29153357ac8d57727e35b8edc090aa4de57e861b878872ff45c432615",
    },
    "scribble": {
        "control_lora_rank128_v11p_sd15_scribble_fp16": (
            "f1f0288cd6d490d9976a9f4c36282f3d47cb8e02dc6805aa44b38d4404fe008a"
        ),
        "noob-sdxl-controlnet-scribble_pidinet.fp16": (
            "6ba55d75e34f63d0538c2dc1006415c495f254624c1c826df7dfaf4bc172ee47"
        ),
    },
    "lines": {
        "control_v11p_sd15_lineart_fp16": "10559106d1bb8196298b7a81565ede9279295d2b2df15165b9dbe189994def56",
        "noob-sdxl-controlnet-lineart_anime.fp16": "44eae6a514a60ae426ff966ecdbb9e170ad63d8889456982bb29037df42b86a8",
    },
    "soft edges": {
        "control_v11p_sd15_softedge_fp16": "e78fea5b4599fec2ecd7e3f14b171feb290b88200c95d569ec0ff59a19bc3478",
        "noob-sdxl-controlnet-softedge_hed.fp16": "c540e9bb474d7b090cee5f45017ceba2d58775c71bc0f6eafa410b435b1dfd92",
    },
    "edges": {
        "control_v11p_sd15_canny_fp16": "8932b66e15aae835b3490dbf989f56c253104cee08a88bf21283762f557c9f10",
        "noob_sdxl_controlnet_canny.fp16": "e37bcdb2f4a6d1782daf6a943a326bee6e6d3027c34f6016460a2c937ba9fba0",
    },
    "depth": {
        "control_lora_rank128_v11f1p_sd15_depth_fp16": (
            "7a0480805947f377985a8c2684b8e52cdd265fcb25b6604ea9409ace08db3d34"
        ),
        "noob-sdxl-controlnet-depth_midas-v1-1.fp16": (
            "678b94ef3260744a1e9e50932ef8895e7f7fabf25eec7fd5cc96298f7220fe50"
        ),
    },
    "normals": {
        "control_lora_rank128_v11p_sd15_normalbae_fp16": (
            "ca84010a8e832d3d2e671c7664ff345f645f3ef7e8359cbca3e2b36d86bcff30"
        ),
        "noob-sdxl-controlnet-normal.fp16": "bcfc7ea417052dd54125c577d01e9cf7f0e81863ff6a75ce23b44eba1d7fa3d3",
    },
    "pose": {
        "control_lora_rank128_v11p_sd15_openpose_fp16": (
            "6c8edde249e6b96f6c9b0516a243d75eb8adc38624efe171a9c8ab5fb1a69608"
        ),
        "noobaiXLControlnet_openposeModel": "918cfc4d7def165ea7a06bee10841fe525332515f8a0486c5cb2a171ec40b873",
    },
    "segmentation": {
        "control_lora_rank128_v11p_sd15_seg_fp16": "11937941597a67150ef0f74aa30f082b1634431080dee609d0231a9a59b7fa4f",
    },
    "other": {
        "control_v1p_sd15_qrcode_monster": "c7f43f70e266153d12f5e1bb1c9e7be3f4513cf0eef0432661b1331bfe11cadf",
        "control_v1p_sdxl_qrcode_monster": "11e49b4e272fabda60094b35be6fd3e215e551211210938e381d27497fd2215c",
    },
}
_HORDE_HASHES = {
    "edges": {
        "diff_control_sd15_canny_fp16": "231ce6b2760538a3fb77b7cdc40983d460a91a95ab526f920b08f5e750748d9c",
        "diff_control_sd21_canny_fp16": "7b2c5d972b6212bb9185e5860e66edd29eeeaeb98d43877688e20c156e196ce4",
    },
    "depth": {
        "diff_control_sd15_depth_fp16": "8b00f19f3f400e3791081ba35c1c615e975d88f5338e7f1bbe09e06465dabc00",
        "diff_control_sd21_depth_fp16": "ed33ec158b6ea3bf61494ee71adc16d45886d5f6611d108345a184ebe7d08d81",
    },
    "soft edges": {
        "diff_control_sd15_hed_fp16": "b0d250e550cedad78abf96431bb298f23573c6739b57b93475390a5529b85e52",
        "diff_control_sd21_hed_fp16": "c2f7b28a3ba62c372ad8a1baa875ddbecbd0f9f28b899ecd1c6add2c7b71f7cf",
    },
    "straight lines": {
        "control_mlsd_fp16": "948fe030361fad35b974e4d112b0ac94df41d7ab61d7847ad7e7b9a98648cf25",
    },
    "normals": {
        "control_normal_fp16": "1007949f163820f5ba324fd78b674fd04423c62ac6b8db1e896b7bf0ab24422c",
    },
    "pose": {
        "control_openpose_fp16": "ac1d356292486bbb8d88c67b1099a2b254008b7213149cd874f9506dff81d8da",
        "control_openpose_fp21": "9d78ae69920502b7dcbf39cd2ec55c9b91b8852ef0248c9bce1624d972f830c5",
    },
    "scribble": {
        "control_scribble_fp16": "b8be265a72b739f809e461adf985051c925c21e9e22e86987a1519191916fc8d",
        "control_scribble_fp21": "7b2ec6479676b52beb8bd22041f6cabbd1a8a16aac7d2d1a3f0e9121edef7b5e",
    },
    "segmentation": {
        "control_seg_fp16": "2471479e29acd24f426ab4aa9cc1598d98d261c3621c91ac70042cdab6cded85",
    },
    "other": {
        "control_v1p_sd15_qrcode_monster_v2": "fc985da5850a03033c9e28032532f406ae04bd127178ae5bc6d3ec0502b25253",
    },
}

PUBLISHED_HASHES = {
    sha256: (kind, name, source)
    for source, table in ((KRITA_SOURCE, _KRITA_HASHES), (HORDE_SOURCE, _HORDE_HASHES))
    for kind, files in table.items()
    for name, sha256 in files.items()
}


@dataclass(frozen=True)
class Inspection:
    """The facts about a file.

    `what` describes a file that is no control model; else `architecture`, `family` and `layout` are set, and `details`
    of the kind. `dtype` is as in "float16", several with their numbers of tensors. `parameters` counts the numbers in
    the network. `prefix` begins all names of tensors in the file, and is left out of them where the model is loaded.
    `files` is the number of parts. `map` is the kind of map it reads, or "unknown", and `map_source` the source of
    that. `problem` is the reason why it does not load.
    """

    file: str
    bytes: int
    sha256: str
    format: str
    files: int
    tensors: int
    dtype: str
    parameters: int
    what: str | None
    architecture: str | None
    family: str | None
    layout: str | None
    prefix: str | None
    details: dict[str, Any]
    map: str
    map_source: str | None
    problem: str | None


def inspect(path_or_repo: str | os.PathLike[str]) -> Inspection:
    """Inspect a file, a folder or a cached repository; nothing in it is executed.

    Raises ValueError or FileNotFoundError if it cannot be read.
    """
    file = ControlFile.read(path_or_repo)
    weights, tensors = file.weights, file.weights.tensors
    net: Any = None
    problem = None
    if file.kind is not None:
        try:
            net = file.load()
        except ValueError as error:
            problem = str(error).removeprefix(f"{str(file.path)!r}: ")
    parts = list_parts(file.path)
    own = list(tensors.values()) if net is None else list(net.parameters())
    kind, source = find_map_type(file)
    return Inspection(
        file=str(file.path),
        bytes=sum(part.stat().st_size for part in parts),
        sha256=weights.sha256,
        format=weights.format,
        files=len(parts),
        tensors=len(tensors),
        dtype=_describe_dtypes(own),
        parameters=sum(prod(tensor.shape) for tensor in own),
        what=file.describe_foreign() if file.kind is None else None,
        architecture=net.architecture if net is not None else file.kind.name if file.kind is not None else None,
        family=None if net is None else net.family,
        layout=file.kind.layout(tensors) if file.kind and file.kind.layout else None,
        prefix=file.prefix or None,
        details={} if net is None else net.details(),
        map=kind,
        map_source=source,
        problem=problem,
    )


def find_map_type(file: ControlFile) -> tuple[str, str | None]:
    """Return the kind of map that a control model reads and the source of that.

    The source is the file's metadata, or the list in which its hash is published; ("unknown", None) without any.
    """
    kind_in_file = normalize_kind(file.weights.metadata.get(MAP_METADATA_KEY, ""))
    if kind_in_file in MAP_KINDS:
        return kind_in_file, "the file's metadata"
    if file.kind is not None and file.weights.sha256 in PUBLISHED_HASHES:
        kind, name, source = PUBLISHED_HASHES[file.weights.sha256]
        return kind, f"the hash of {name} in {source}"
    return "unknown", None


def _describe_dtypes(tensors: list[Any]) -> str:
    counts = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors).most_common()
    if len(counts) == 1:
        return counts[0][0]
    return ", ".join(f"{dtype} ({count})" for dtype, count in counts)
