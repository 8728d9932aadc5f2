"""Packages that diffusers and transformers import and an image does not need, imported when they are used.

They import torch._dynamo for the marks of a compiler that does not run, scipy for one function of a loss, peft for LoRA
files, torch.distributed.tensor for models on several machines: half of what a start costs. `defer_imports` gives their
names as stand-ins. A stand-in that is called, subclassed or asked for an attribute imports the real package, and then
all is as without this module. Whether a package is installed is answered as ever.

Only for processes of our own (`cli.program`): in somebody's program this would change imports that are not ours."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, Union

DEFERRED_PACKAGES = (
    "peft",
    "scipy",
    "torch._dynamo",
    "torch.distributed.tensor",
    "torch.nn.attention.flex_attention",
    "transformers.distributed.expert_parallel",
    "transformers.distributed.tensor_parallel",
)
COMPILER_MARKS = ("allow_in_graph", "assume_constant_result", "disable")
"""Decorators of torch._dynamo, which tell torch.compile how to treat a function. They change nothing else."""
IMPORT_ATTRIBUTES = ("__cached__", "__file__", "__loader__", "__package__", "__path__", "__spec__")
"""Attributes that the import system gives a module while it makes one."""


class DeferredName:
    """A class or function of a deferred module, which is imported when this is used.

    Nothing is an instance or a subclass of a class in a package that nobody has imported."""

    def __init__(self, module: DeferredModule, name: str):
        self._module, self._name = module, name

    def resolve(self) -> Any:
        """Import the package and return the object itself."""
        return getattr(self._module.load(), self._name)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.resolve())

    def __getattr__(self, name: str) -> Any:
        if re.fullmatch(r"__(typing_\w+|parameters)__", name):  # asked of all that stands in Optional[...]
            raise AttributeError(name)
        return getattr(self.resolve(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.resolve()(*args, **kwargs)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.resolve(),)

    def __instancecheck__(self, instance: Any) -> bool:
        return self._module.is_loaded and isinstance(instance, self.resolve())

    def __subclasscheck__(self, subclass: type) -> bool:
        return self._module.is_loaded and issubclass(subclass, self.resolve())

    def __or__(self, other: Any) -> Any:
        try:
            return Union.__getitem__((self, other))  # of an annotation
        except TypeError:
            return self.resolve() | other

    def __ror__(self, other: Any) -> Any:
        return self | other

    def __bool__(self) -> bool:
        return bool(self.resolve())

    def __len__(self) -> int:
        return len(self.resolve())

    def __iter__(self) -> Any:
        return iter(self.resolve())

    def __contains__(self, item: Any) -> bool:
        return item in self.resolve()

    def __getitem__(self, key: Any) -> Any:
        return self.resolve()[key]


class DeferredModule(ModuleType):
    """A module of a deferred package: it gives a `DeferredName` for each name that its file mentions, modules like
    itself for its submodules, and imports the package for all else."""

    def __init__(self, name: str, finder: DeferringFinder):
        super().__init__(name)
        vars(self)["_finder"] = finder

    @property
    def is_loaded(self) -> bool:
        """True if the package has been imported, or is being imported."""
        return not vars(self)["_finder"].defers(self.__name__)

    def load(self) -> ModuleType:
        """Import the package, and return the module that this one stands for."""
        vars(self)["_finder"].load(self.__name__)
        return importlib.import_module(self.__name__)

    def __getattr__(self, name: str) -> Any:
        if name in IMPORT_ATTRIBUTES:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if self.is_loaded or re.fullmatch("__.*__", name):
            return getattr(self.load(), name)
        path = f"{self.__name__}.{name}"
        if "__path__" in vars(self) and PathFinder.find_spec(path, self.__path__) is not None:
            return importlib.import_module(path)
        if self.__name__ == "torch._dynamo" and name in COMPILER_MARKS:
            return _mark_nothing
        return DeferredName(self, name) if self._mentions(name) else getattr(self.load(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if re.fullmatch("__.*__", name) or (isinstance(value, ModuleType) and not self.is_loaded):
            super().__setattr__(name, value)  # as the import system does
        else:
            setattr(self.load(), name, value)

    def _mentions(self, name: str) -> bool:
        """Return True if the module's file holds the name: it is not imported to find that there is none."""
        try:
            text = Path(str(self.__file__)).read_text(encoding="utf-8")
        except (OSError, ValueError):  # no Python source
            return False
        return re.search(rf"\b{name}\b", text) is not None


class DeferringFinder(MetaPathFinder, Loader):
    """Finds the modules of `packages` before Python's own finders do, and gives stand-ins for them."""

    def __init__(self, packages: Iterable[str]):
        self.packages = set(packages)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module that is deferred; None for others, and for what is not installed."""
        spec = PathFinder.find_spec(fullname, path) if self.defers(fullname) else None
        if spec is not None and spec.has_location:
            spec.loader = self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module that stands for the one of a spec."""
        return DeferredModule(spec.name, self)

    def exec_module(self, module: ModuleType) -> None:
        """Run nothing."""

    def defers(self, name: str) -> bool:
        """Return True if the module belongs to a package that is deferred."""
        return self._find_package(name) is not None

    def load(self, name: str) -> None:
        """Import the package of the module `name`, and put the real modules and names where stand-ins are."""
        package = self._find_package(name)
        if package is None:
            return
        self.packages.discard(package)
        standins = {key for key, module in [*sys.modules.items()] if type(module) is DeferredModule}
        standins = {key for key in standins if f"{key}.".startswith(f"{package}.")}
        for key in standins:
            parent, _, child = key.rpartition(".")
            del sys.modules[key]
            if parent in sys.modules:
                vars(sys.modules[parent]).pop(child, None)
        importlib.import_module(package)
        for module in [*sys.modules.values()]:
            names = vars(module) if isinstance(module, ModuleType) else {}
            for key, value in [*names.items()]:
                if type(value) is DeferredName and value._module.__name__ in standins:
                    names[key] = value.resolve()
                elif type(value) is DeferredModule and value.__name__ in standins:
                    names[key] = importlib.import_module(value.__name__)

    def _find_package(self, name: str) -> str | None:
        return next((package for package in self.packages if f"{name}.".startswith(f"{package}.")), None)


def defer_imports(packages: Iterable[str] = DEFERRED_PACKAGES) -> DeferringFinder:
    """From now on import these packages when they are used, and return what finds them. Those that are imported
    already stay as they are."""
    finder = DeferringFinder(package for package in packages if package not in sys.modules)
    sys.meta_path.insert(0, finder)
    return finder


def _mark_nothing(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    return _mark_nothing if function is None else function
