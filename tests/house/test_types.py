"""Types of the house's own code: few parameters are `Any`, and no member of our own classes is looked up by name."""

import ast

from sources import FILES, parse_all
from test_rooms import module, room

MAX_BARE_ANY = 0.03  # of the parameters outside webui/, whose host has no types
# Members of foreign objects which one of our classes has too, by file; whose they are
FOREIGN_MEMBERS = {
    ("controlnet_ext/guidance/hints.py", "detach"),  # a tensor, where torch may not be loaded
    ("controlnet_ext/hosts/diffusers/guide.py", "unet"),  # diffusers: a pipeline
    ("controlnet_ext/hosts/diffusers/guide.py", "down_blocks"),  # diffusers: a UNet, not a transformer
    ("controlnet_ext/hosts/diffusers/guide.py", "has_cross_attention"),  # diffusers: blocks of a UNet
    ("controlnet_ext/hosts/diffusers/guide.py", "mid_block"),  # diffusers: a UNet, not a transformer
    ("controlnet_ext/hosts/diffusers/host.py", "latents"),  # diffusers: the output of a VAE
    ("controlnet_ext/hosts/diffusers/host.py", "num_timesteps"),  # diffusers: a pipeline
    ("controlnet_ext/hosts/diffusers/host.py", "values"),  # diffusers: the state of a modular pipeline
    ("controlnet_ext/hosts/ldm/unet_view.py", "attn2"),  # ldm: modules of a UNet
    ("controlnet_ext/hosts/ldm/unet_view.py", "transformer_blocks"),  # ldm: modules of a UNet
    ("controlnet_ext/hosts/diffusers/guide.py", "num_timesteps"),  # diffusers: a pipeline
    ("controlnet_ext/maps/control_map.py", "shape"),  # arrays and tensors, where torch may not be loaded
    ("controlnet_ext/models/base_unet.py", "attentions"),  # diffusers: blocks of a UNet
    ("controlnet_ext/models/base_unet.py", "config"),  # diffusers: a UNet, not each module
    ("controlnet_ext/models/base_unet.py", "group"),  # diffusers: the hook of group offloading
    ("controlnet_ext/models/base_unet.py", "scale"),  # layers of libraries that quantize
    ("controlnet_ext/models/base_unet.py", "state"),  # layers of bitsandbytes
    ("controlnet_ext/models/base_unet.py", "transformer_blocks"),  # diffusers: modules of a block
    ("controlnet_ext/models/kinds/t2i_adapter.py", "has_cross_attention"),  # diffusers: blocks of a UNet
    ("controlnet_ext/webui/inputs.py", "init_images"),  # the webui: a processing
    ("controlnet_ext/webui/inputs.py", "resize_mode"),  # the webui: a processing
    ("controlnet_ext/webui/inputs.py", "enable_hr"),  # the webui: a processing
    ("controlnet_ext/webui/sampling.py", "enable_hr"),
}


def parameters(tree):
    """The parameters of all functions of a file but self and cls."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            yield from ((node, argument) for argument in arguments if argument.arg not in ("self", "cls"))


def members(tree):
    """Names of all that the classes of a file define: in their bodies, and on `self`."""
    for owner in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        for node in owner.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node.name
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                yield node.target.id
            elif isinstance(node, ast.Assign):
                yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        for node in ast.walk(owner):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                yield from [node.attr] * (isinstance(node.value, ast.Name) and node.value.id == "self")


def lookups(tree):
    """(line, member, or None where it is computed) of `hasattr(x, member)` and `getattr(x, member, default)`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        if node.func.id == "hasattr" or (node.func.id == "getattr" and len(node.args) == 3):
            name = node.args[1]
            yield node.lineno, name.value if isinstance(name, ast.Constant) else None


def test_few_parameters_outside_the_webui_are_any():
    bare, count = [], 0
    for (file, tree), path in zip(parse_all().items(), FILES, strict=True):
        if room(module(path)) == "webui":
            continue
        for function, argument in parameters(tree):
            count += 1
            if argument.annotation is not None and ast.unparse(argument.annotation) == "Any":
                bare.append(f"{file}:{function.lineno} {function.name}({argument.arg})")
    assert count > 3000
    assert len(bare) <= MAX_BARE_ANY * count, "\n".join(bare)


def test_every_parameter_has_a_type():
    assert [
        f"{file}:{function.lineno} {function.name}({argument.arg})"
        for file, tree in parse_all().items()
        for function, argument in parameters(tree)
        if argument.annotation is None
    ] == []


def test_no_member_of_our_own_is_looked_up_by_name():
    own = {name for tree in parse_all().values() for name in members(tree)}
    assert {"bind", "architecture", "stream_device"} <= own
    found = {(file, line, name) for file, tree in parse_all().items() for line, name in lookups(tree) if name in own}
    assert not {each for each in found if (each[0], each[2]) not in FOREIGN_MEMBERS}
