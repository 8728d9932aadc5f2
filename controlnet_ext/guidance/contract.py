"""The values of one guided step, the base classes that connect control models, hosts and units, and what undoes their
changes of a UNet.

Importing this module does not load torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass
from functools import partial
from inspect import GEN_SUSPENDED, getgeneratorstate
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias

from .schedule import Span

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn
    from typing_extensions import Self

Hint: TypeAlias = Any  # made by a model's `hint()`, and read by the same model's call only


@dataclass(frozen=True)
class Crop:
    """The part of an image that a UNet call shows, and how it was brought to the size of the call.

    All numbers are pixels. `image_size` is height and width of the whole image, to which maps are fitted; `box` (left,
    top, right, bottom) lies in it; `size` is height and width of the call. The part was resized to `target` (left,
    top, right, bottom) within `size`, by default to all of it, and its border continued around that. Raises ValueError
    for a box or a target that is empty or not inside.
    """

    image_size: tuple[int, int]
    box: tuple[int, int, int, int]
    size: tuple[int, int]
    target: tuple[int, int, int, int] | None = None

    def __post_init__(self) -> None:
        _check_box("box", self.box, self.image_size)
        _check_box("target", self.placement, self.size)

    @property
    def placement(self) -> tuple[int, int, int, int]:
        """`target`, or all of `size`."""
        return self.target or (0, 0, self.size[1], self.size[0])


def _check_box(name: str, box: tuple[int, int, int, int], size: tuple[int, int]) -> None:
    left, top, right, bottom = box
    if not (0 <= left < right <= size[1] and 0 <= top < bottom <= size[0]):
        raise ValueError(
            f"{name} {tuple(box)} is not (left, top, right, bottom) inside an image of {size[1]}x{size[0]} pixels"
        )


@dataclass(frozen=True, eq=False)
class Step:
    """One call of the UNet as the host sees it.

    `x` is `(B, C, h, w)`, `t` `(B,)` the timesteps, `context` `(B, T, D)` the prompt embeddings, `span` the place of
    the step in its run. `positive` `(B,)` is True on the rows that have the prompt, None if the host cannot tell.
    `added` `(B, 2816)` is the added vector of SDXL (`y` in ldm). `samples` `(B,)` is the index of the image that each
    row belongs to, and `image_count` the number of images, None when the call has rows of all of them. With
    `frames` > 1 the batch is a flattened video, B = images x frames. `weight` is the factor that the unit applies to
    the residuals afterwards, for networks that also use it inside. `crops` has the part of the image that each row
    shows; it is empty if the host knows that the rows show the whole image, None if the host cannot tell.
    `images_per_prompt` images in a row share the map of their prompt where there is one for each prompt.
    """

    x: Tensor
    t: Tensor
    context: Tensor
    span: Span
    positive: Tensor | None = None
    added: Tensor | None = None
    samples: Tensor | None = None
    frames: int = 1
    image_count: int | None = None
    weight: float = 1.0
    crops: tuple[Crop, ...] | None = None
    images_per_prompt: int = 1


@dataclass(frozen=True, eq=False)
class Residuals:
    """The tensors that a control model adds to a UNet.

    `skips` has one tensor `(B, C, h, w)` per skip connection, the first encoder block first; `middle` belongs to the
    middle block; `encoder` is added inside the encoder (T2I-Adapters). Tensors are never changed in place.
    """

    skips: tuple[Tensor, ...] = ()
    middle: Tensor | None = None
    encoder: tuple[Tensor, ...] = ()

    def map(self, f: Callable[[Tensor, int], Tensor]) -> Residuals:
        """Return residuals with `f(tensor, depth)` applied to each tensor.

        `depth` counts the skips from 0; the middle block follows the last skip. It counts `encoder` from 0 too.
        """
        return Residuals(
            tuple(f(r, i) for i, r in enumerate(self.skips)),
            None if self.middle is None else f(self.middle, len(self.skips)),
            tuple(f(r, i) for i, r in enumerate(self.encoder)),
        )

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors `(B, C, h, w)`: skips, middle block, encoder."""
        return (*self.skips, *(() if self.middle is None else (self.middle,)), *self.encoder)

    def __add__(self, other: Residuals) -> Residuals:
        return Residuals(
            _add_tuples(self.skips, other.skips),
            _add_optional(self.middle, other.middle),
            _add_tuples(self.encoder, other.encoder),
        )


@dataclass(frozen=True, eq=False)
class Activation:
    """The state of a unit in the present UNet call, for models that act inside the attention.

    `strength` `(B,)` is the weight of the unit on each row, 0 on rows that its mode excludes; `layers` are the
    factors of the unit; `region` `(1, 1, H, W)`, or `(B, 1, H, W)` for rows that show different parts of the image,
    is in 0..1 at the size the user gave; `pass_index` counts the runs from 0.
    """

    step: Step
    strength: Tensor
    layers: Sequence[float] | None
    region: Tensor | None
    pass_index: int


class UNet(Protocol):
    """A UNet, as control models read it: the members that it has in diffusers' UNet2DConditionModel.

    Where a unit guides a transformer, it is that transformer, which has the first four.
    """

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings, by diffusers' names."""

    def get_submodule(self, target: str) -> Any:
        """Return the module of this name."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return the tensors by name."""

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield (name, module) in the order in which they run."""

    @property
    def down_blocks(self) -> Sequence[Any]:
        """The levels of the encoder: `resnets`, `downsamplers`, and `attentions` where a level has them."""

    @property
    def mid_block(self) -> Any:
        """The middle block, None without one."""


class Host(Protocol):
    """The services of a host that a control model may use during a run."""

    @property
    def unet(self) -> UNet:
        """The UNet that is guided."""

    @property
    def pixel_size(self) -> tuple[int, int]:
        """Height and width in pixels of what the present UNet call shows: the image, or a part of it."""

    @property
    def generator(self) -> torch.Generator:
        """A generator on the CPU, equal in every run that starts from the same noise, independent of the host's."""

    def encode(self, image: np.ndarray, apply_vae_shift: bool = True) -> Tensor:
        """Return latents `(B, C, h, w)`, scaled as the UNet sees them, of RGB uint8 `(H, W, 3)` or `(B, H, W, 3)`.

        `apply_vae_shift` False leaves out the shift of VAEs that have one.
        """

    def iter_attentions(self) -> Iterable[tuple[str, Any, str]]:
        """Yield (name, module, place) of the UNet's spatial attention modules, in the order in which they run.

        `place` is "input", "middle" or "output".
        """


class ControlModel:
    """A network that reads a map and guides a UNet; the base class of every kind.

    A kind states what it is in the members below and overrides the methods that it needs. A unit of a run uses a
    model in this order: `bind(unet)` and `for_map_types(kinds)` when the guide begins; `stream_to(device)` if the unit
    has `low_vram`; `hint(image)` once for each image and size; `model(step, hint)` in each step (or `attach`, for an
    `AttentionModel`); `after_step(x0, step)` if `acts_after_step`.
    """

    architecture: str
    """The kind of model, for messages, as in "controlnet"."""
    family: str
    """The family of base models, for messages: "sd15", "sd21", "sdxl", …, or "every"."""
    map_type: str | None = None
    """The kind of maps that it was trained with, where its file or the file's name states one."""
    refuses_other_maps: bool = False
    """Maps that are stated to be of another kind than `map_type` are refused before anything is drawn."""
    hint_input: Literal["pixels", "latents", "embedding"] = "pixels"
    """The input of `hint()`: images, latents of them made by `Host.encode`, or `ControlMap.values`."""
    needs_vae_shift: bool = True
    """For "latents": `Host.encode` applies the VAE's shift."""
    multi_hint: bool = False
    """The call takes a list with the hint of every image of the unit, instead of one call per image."""
    makes_residuals: bool = True
    """The model is called in each step; False for models that act otherwise only."""
    acts_after_step: bool = False
    """`after_step` is called after each step."""
    stream_device: torch.device | None = None
    """The device on which `stream_to` made this copy compute, None where its weights are."""
    LAYOUTS: ClassVar[Mapping[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]]] = MappingProxyType({})
    """For each layout of files ("diffusers", "ldm"), a function from the state dict to the tensors of such a file."""

    @property
    def prompt_rows_only(self) -> bool:
        """True if the model acts on the rows with the prompt only, whatever the mode of the unit."""
        return False

    @property
    def skip_count(self) -> int | None:
        """The number of skips that it makes residuals for, None if it depends on the UNet."""
        return None

    def bind(self, unet: UNet) -> None:
        """Prepare for a UNet, given in diffusers' words. Raises ValueError if the model does not fit it."""

    def check_compatible(self, unet: UNet) -> None:
        """Check that the model fits a UNet, keeping nothing of it. Raises ValueError if it does not."""
        self.bind(unet)

    def restrict_maps(self, kind: str) -> Self:
        """Return a copy that refuses maps of other kinds; itself where it does already."""
        if self.refuses_other_maps and self.map_type == kind:
            return self
        model = copy(self)
        model.map_type, model.refuses_other_maps = kind, True
        return model

    def for_map_types(self, kinds: Sequence[str | None]) -> Self:
        """Return the model that reads maps of these kinds, one for each image (None: unknown).

        Raises ValueError if the model does not read such maps.
        """
        return self

    def stream_to(self, device: torch.device) -> Self:
        """Return a copy that computes on `device` while its weights stay where they are, layer by layer.

        Models without that ability return themselves.
        """
        return self

    def hint(self, image: np.ndarray | Tensor) -> Hint:
        """Return the hint for the calls of a run.

        `image` is RGB uint8 `(H, W, 3)`, or `(B, H, W, 3)` with an image for each row, or float `(B, 3, H, W)` in 0..1
        with -1 where to repaint, at the host's pixel size; or what `hint_input` states. Nothing is resized.
        """
        raise NotImplementedError(f"{type(self).__name__} has no hint()")

    def __call__(self, step: Step, hint: Hint) -> Residuals:
        """Return residuals of weight 1 with a row for each row of `step.x`."""
        raise NotImplementedError(f"{type(self).__name__} makes no residuals")

    def after_step(self, x0: Tensor, step: Step) -> Tensor:
        """Return the clean latents `(B, C, h, w)` to use in place of the prediction `x0`."""
        return x0

    def details(self) -> dict[str, Any]:
        """Return the facts that `controlnet-ext inspect` shows about this kind."""
        return {}

    def config(self) -> dict[str, Any]:
        """Return the config.json of the same network in diffusers. Raises ValueError if diffusers has none."""
        raise ValueError(f"diffusers has no network like a {self.architecture}")

    def unstored_config(self) -> dict[str, Any]:
        """Return the settings that the tensors do not show, in diffusers' words."""
        return {}


class AttentionModel(ControlModel):
    """A control model that acts inside the attention of the UNet.

    It wraps attention processors or hooks modules, and never replaces anything for good. `UndoStack` undoes that, also
    where it is interrupted.
    """

    makes_residuals = False

    def attach(
        self, host: Host, hint: Hint, get_activation: Callable[[], Activation | None]
    ) -> AbstractContextManager[None]:
        """Return a context manager in which the model acts on `host.unet`, and after which nothing of it is left.

        `get_activation()` returns None while the unit does not act; then the UNet must compute as without it.
        """
        raise NotImplementedError(f"{type(self).__name__} has no attach()")


class UndoStack:
    """Functions that undo changes of somebody else's objects, the last change first.

    A function is recorded before the change is made, so that an interrupt between the two leaves nothing behind. So it
    must also be right where the change was not made, or is undone already. In a generator:

        undo = UndoStack()
        try:
            try:
                undo.register_forward_hook(module, hook)
                yield
            finally:
                undo.close()
        finally:
            undo.close()  # goes on where an interrupt broke it off
    """

    def __init__(self) -> None:
        self._undos: list[Callable[[], object]] = []

    def __len__(self) -> int:
        return len(self._undos)

    def push(self, undo: Callable[[], object]) -> None:
        """Record the function that undoes the change which the caller is about to make."""
        self._undos.append(undo)

    def close(self, keep: int = 0) -> None:
        """Undo all changes but the first `keep`; after an interrupt, a further call continues with the same change.

        Raises the first error that a function raises, after all have been called.
        """
        error: Exception | None = None
        while len(self._undos) > keep:
            try:
                self._undos[-1]()
            except Exception as failed:  # an interrupt is none, and leaves the function where it is
                error = error or failed
            self._undos.pop()
        if error is not None:
            raise error

    def enter_context(self, context: AbstractContextManager[Any]) -> None:
        """Enter a context that `close` leaves without an exception."""
        entries: list[bool] = []

        def leave() -> None:
            generator = getattr(context, "gen", None)  # of a function under contextlib.contextmanager
            if entries if generator is None else getgeneratorstate(generator) == GEN_SUSPENDED:
                context.__exit__(None, None, None)

        self.push(leave)
        context.__enter__()
        entries.append(True)

    def register_forward_pre_hook(self, module: Any, hook: Callable[..., Any], **options: Any) -> None:
        """Register a hook in front of a torch module's calls, with torch's options."""
        self._register(module.register_forward_pre_hook, module, hook, options)

    def register_forward_hook(self, module: Any, hook: Callable[..., Any], **options: Any) -> None:
        """Register a hook behind a torch module's calls, with torch's options."""
        self._register(module.register_forward_hook, module, hook, options)

    def make_copies_plain(self, module: Any, prepare: Callable[[], None] = lambda: None) -> None:
        """Leave this project's hooks out of copies and pickles of a torch module; `prepare` is called before each.

        copy and pickle ask an object for `__getstate__`, also one of its own.
        """
        if "__getstate__" not in vars(module):
            self.push(partial(vars(module).pop, "__getstate__", None))
            vars(module)["__getstate__"] = partial(_get_plain_state, module, prepare)

    def _register(self, register: Any, module: Any, hook: Callable[..., Any], options: Mapping[str, Any]) -> None:
        self.make_copies_plain(module)
        module_hook = ModuleHook(hook)
        self.push(partial(_remove_hook, module, module_hook))
        register(module_hook, **options)


class ModuleHook:
    """A forward hook on a torch module, which tells it apart from hooks of others."""

    def __init__(self, hook: Callable[..., Any]):
        self._hook = hook

    def __call__(self, *args: Any) -> Any:
        return self._hook(*args)


# torch's tables of a module's hooks by number (torch 2.1 to 2.14); those of options hold some of the same numbers
HOOK_OPTION_TABLES = "_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"
HOOK_TABLES = "_forward_pre_hooks", "_forward_hooks"


def _remove_hook(module: Any, hook: ModuleHook) -> None:
    """Remove a hook without its handle, which torch returns only after it has registered the hook."""
    tables = vars(module)
    numbers = [number for name in HOOK_TABLES for number, entry in tables[name].items() if entry is hook]
    for name in (*HOOK_OPTION_TABLES, *HOOK_TABLES):
        for number in numbers:
            tables.get(name, {}).pop(number, None)


def _get_plain_state(module: Any, prepare: Callable[[], None]) -> dict[str, Any]:
    """Return the state of a torch module for a copy without this project's hooks."""
    prepare()
    get_state = getattr(type(module), "__getstate__", None)  # Python 3.10 has none for objects in general
    state = dict(vars(module) if get_state is None else get_state(module))
    state.pop("__getstate__", None)
    for name in (*HOOK_OPTION_TABLES, *HOOK_TABLES):
        if name in state:
            state[name] = state[name].copy()
    for name in HOOK_TABLES:
        for number in [number for number, hook in state[name].items() if isinstance(hook, ModuleHook)]:
            for table in (*HOOK_OPTION_TABLES, *HOOK_TABLES):
                state.get(table, {}).pop(number, None)
    return state


def _add_optional(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _add_tuples(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x + y for x, y in zip(a, b, strict=True)) if a and b else a or b
