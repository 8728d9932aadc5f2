"""The hook on a UNet: residuals in before each call, its result as units want it, and everything as it was
afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, Protocol

from torch import Tensor

from ...guidance.contract import Residuals
from ..side_stream import SideStream, open_side_stream
from .transformer_call import CALL_TYPES
from .unet_call import UNetCall

BUSY_MESSAGE = "the UNet is guided in another thread; wait until that is done, or give each thread a UNet of its own"


class Guide(Protocol):
    def observe(self, call: UNetCall) -> bool: ...

    def compute_residuals(self, call: UNetCall, is_new_run: bool) -> Iterator[Residuals]: ...

    @property
    def has_attached_units(self) -> bool: ...

    @property
    def is_last_step(self) -> bool: ...

    def check_finite(self) -> None: ...

    def apply_post_steps(self, out: Tensor) -> Tensor: ...

    def detach(self) -> None: ...


class UNetHook:
    """What is called before and after a UNet: guides in order of entry, which all belong to one thread."""

    def __init__(self, unet: Any):
        self.unet = unet
        self.thread = threading.get_ident()
        self.guides: list[Guide] = []
        self._shape: Any = None
        self._side_stream: SideStream | None = None
        self._uninstall = self._install()

    def __call__(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
        """The arguments with residuals, as forward pre-hooks give them; None where there is nothing to add."""
        if threading.get_ident() != self.thread:
            raise RuntimeError(BUSY_MESSAGE)
        call = make_call(unwrap_compiled(self.unet), args, kwargs)
        begins = [guide.observe(call) for guide in self.guides]
        if any(begins) or call.x.shape != self._shape:
            self.detach()
            self._shape = call.x.shape
        own = self._get_side_stream(call)
        total = passed = call.pipeline_residuals
        with nullcontext() if own is None else own.activate():
            for guide, new in zip(self.guides, begins, strict=True):
                for residuals in guide.compute_residuals(call, new):
                    total = residuals if total is None else total + residuals
        if own is not None and total is not None and total.encoder:
            own.wait()
        return None if total is passed or total is None else call.add_residuals(total, own)

    def _get_side_stream(self, call: UNetCall) -> SideStream | None:
        """None where what guides compute must be there before the UNet begins: inside its attention, or where it is
        compiled and reads it who knows when."""
        if self._side_stream is None:
            self._side_stream = open_side_stream(call.x.device)
        if (
            self._side_stream is None
            or is_compiled(self.unet)
            or any(guide.has_attached_units for guide in self.guides)
        ):
            return None
        return self._side_stream

    def finish_call(self, result: Any) -> Any:
        """Be called after the UNet with its result, None when it failed; the result as guides want it. Attention is
        given back when a run ends, because the pipeline may then put back its own processors, as those for perturbed
        attention guidance do."""
        if threading.get_ident() != self.thread:
            return result  # it was refused, and may not disturb the thread whose guides these are
        failed = True
        if self._side_stream is not None:
            self._side_stream.wait()
        try:
            if result is not None:
                for guide in self.guides:
                    guide.check_finite()
                out = changed = result[0]
                for guide in self.guides:
                    changed = guide.apply_post_steps(changed)
                if changed is not out:
                    result = (changed, *result[1:]) if isinstance(result, tuple) else type(result)(sample=changed)
                failed = False
        finally:
            if failed or any(guide.is_last_step for guide in self.guides):
                self.detach()
        return result

    def detach(self) -> None:
        """Undo what acts in the attention, last first; of guides that stay it comes back with the next call."""
        for guide in reversed(self.guides):
            guide.detach()

    def remove_guide(self, guide: Guide) -> None:
        """The last one takes the hook along, whatever goes wrong with what acts in the attention."""
        try:
            self.detach()
        finally:
            self.guides.remove(guide)
            if not self.guides:
                self._uninstall()

    def _install(self) -> Callable[[], None]:
        """Be called before the UNet; what is given back undoes it."""
        compiled = getattr(self.unet, "_compiled_call_impl", None)
        if compiled is None:
            handles = ExitStack()
            handles.callback(self.unet.register_forward_pre_hook(self, with_kwargs=True).remove)
            ended = self.unet.register_forward_hook(lambda *call: self.finish_call(call[-1]), always_call=True)
            handles.callback(ended.remove)
            return handles.close

        def call(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = self(self.unet, args, kwargs) or (args, kwargs)
            result = None
            try:
                result = compiled(*args, **kwargs)
            finally:
                result = self.finish_call(result)
            return result

        # unet.compile() compiles a module's hooks with it, and does not notice those that come later
        self.unet._compiled_call_impl = call
        return lambda: setattr(self.unet, "_compiled_call_impl", compiled)


_hooks: dict[Any, UNetHook] = {}  # by UNet, while it is guided
_hooks_lock = threading.Lock()


@contextmanager
def install_hook(unet: Any, guide: Guide) -> Iterator[None]:
    """In this context the guide acts on the UNet, after those that do already. RuntimeError when they belong to another
    thread."""
    key = unwrap_compiled(unet)
    with _hooks_lock:
        hook = _hooks.get(key)
        if hook is None:
            hook = _hooks[key] = UNetHook(unet)
        if hook.thread != threading.get_ident():
            raise RuntimeError(BUSY_MESSAGE)
        if hook.unet is not unet:
            raise RuntimeError(
                "the UNet is guided already, but compiled otherwise; nested guides need the same pipeline"
            )
        hook.guides.append(guide)
    try:
        yield
    finally:
        with _hooks_lock:
            try:
                hook.remove_guide(guide)
            finally:
                if not hook.guides:
                    del _hooks[key]


def make_call(unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The call of a UNet or a transformer."""
    return CALL_TYPES.get(type(unet).__name__, UNetCall)(unet, args, kwargs)


def is_compiled(unet: Any) -> bool:
    """Whether torch.compile has the UNet, or blocks of it."""
    compiled = (getattr(module, "_compiled_call_impl", None) for module in unwrap_compiled(unet).modules())
    return unwrap_compiled(unet) is not unet or any(call is not None for call in compiled)


def unwrap_compiled(unet: Any) -> Any:
    """The UNet inside of torch.compile(unet); any other as it is."""
    return getattr(unet, "_orig_mod", unet)
