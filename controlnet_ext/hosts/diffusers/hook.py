"""The hooks on a UNet or transformer of diffusers, for plain modules and for those under torch.compile."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

from ...guidance.contract import Residuals
from ..session import GuidedUNet, GuideSession
from .transformer_call import CALL_TYPES
from .unet_call import DenoiserCall, UNetCall


class CallSession(GuideSession):
    """A session that reads the calls of a diffusers UNet; `guide.py` has the one for pipelines."""

    denoiser: Any
    """The UNet or transformer that is called, under torch.compile where it is compiled."""

    def observe(self, call: DenoiserCall) -> bool:
        """Take note of a UNet call before anything is computed. Return True if a run begins with it."""
        raise NotImplementedError

    def guide_call(self, call: DenoiserCall, is_new_run: bool) -> Iterable[Residuals]:
        """Return an iterable of the residuals of each unit in this UNet call."""
        raise NotImplementedError

    @property
    def is_last_step(self) -> bool:
        """True if the present UNet call is the last of its run."""
        raise NotImplementedError


class UNetHook(GuidedUNet):
    """A UNet or transformer with a hook before and one after each call; guides nest in one thread."""

    sessions: list[CallSession]  # type: ignore[assignment]

    def __init__(self, unet: Any):
        super().__init__(unet)
        self._uninstall = self._install()

    def check_nesting(self, session: GuideSession) -> None:
        """Check that one more session may enter. Raises RuntimeError in another thread."""
        self.check_thread()
        if not isinstance(session, CallSession) or session.denoiser is not self.unet:
            raise RuntimeError(
                "the UNet is guided already, but compiled otherwise; nested guides need the same pipeline"
            )

    def uninstall(self) -> None:
        """Remove the hooks."""
        self._uninstall()

    def add_residuals(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
        """Return the arguments of a call with residuals, as forward pre-hooks give them; None to change nothing.

        Raises RuntimeError in another thread than the sessions'.
        """
        self.check_thread()
        call = make_call(unwrap_compiled(self.unet), args, kwargs)
        begins = [session.observe(call) for session in self.sessions]
        self.start_call(call.x, any(begins))
        own = call.pipeline_residuals
        parts = (session.guide_call(call, new) for session, new in zip(self.sessions, begins, strict=True))
        # a compiled UNet reads its arguments in an order of its own
        total = self.sum_residuals(parts, call.x.device, own, may_overlap=not is_compiled(self.unet))
        if total is own or total is None:
            return None
        if total.encoder:
            self.wait()
        return call.add_residuals(total, self.side_stream)

    def handle_result(self, result: Any) -> Any:
        """Return the result of a call, changed by units that act after the step; `result` is None if the call failed.

        Attention is restored when a run ends: the pipeline may then put back processors of its own, as those for
        perturbed attention guidance do.
        """
        if not self.is_own_thread:
            return result  # of a refused call
        is_failed = True
        try:
            self.wait()
            if result is not None:
                changed = self.finish_call(result[0])
                if changed is not result[0]:
                    result = (changed, *result[1:]) if isinstance(result, tuple) else type(result)(sample=changed)
                is_failed = False
        finally:
            if is_failed or any(session.is_last_step for session in self.sessions):
                self.detach()
        return result

    def _install(self) -> Callable[[], None]:
        """Install the hooks. Return a function that removes them."""
        compiled = getattr(self.unet, "_compiled_call_impl", None)
        if compiled is None:
            handles = ExitStack()
            before = self.unet.register_forward_pre_hook(lambda _, *given: self.add_residuals(*given), with_kwargs=True)
            handles.callback(before.remove)
            after = self.unet.register_forward_hook(lambda *given: self.handle_result(given[-1]), always_call=True)
            handles.callback(after.remove)
            return handles.close

        def call(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = self.add_residuals(args, kwargs) or (args, kwargs)
            result = None
            try:
                result = compiled(*args, **kwargs)
            finally:
                result = self.handle_result(result)
            return result

        # unet.compile() compiles a module's hooks with it, and does not notice those that come later
        self.unet._compiled_call_impl = call
        return lambda: setattr(self.unet, "_compiled_call_impl", compiled)


def make_call(unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> DenoiserCall:
    """Return the call of a UNet or a transformer with these arguments."""
    kind: type[DenoiserCall] = CALL_TYPES.get(type(unet).__name__, UNetCall)
    return kind(unet, args, kwargs)


def is_compiled(unet: Any) -> bool:
    """Return True if torch.compile has the UNet, or blocks of it."""
    compiled = (getattr(module, "_compiled_call_impl", None) for module in unwrap_compiled(unet).modules())
    return unwrap_compiled(unet) is not unet or any(call is not None for call in compiled)


def unwrap_compiled(unet: Any) -> Any:
    """Return the UNet inside of `torch.compile(unet)`, or `unet` itself."""
    return getattr(unet, "_orig_mod", unet)
