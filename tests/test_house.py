"""The house's rules, read off the syntax of every file: who may import whom, and who may open files."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("annotators", "preprocessors", "controlnet_ext")  # each imports only those before it
CORE = {
    "control",
    "weighting",
    "unit",
    "maps",
    "acting",
    "placing",
    "run",
    "noise",
    "after_steps",
    "reuse",
}  # what models and hosts stand on
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
HEAVY = {"torch", "diffusers", "transformers", "accelerate", "peft", "torchvision", "controlnet_aux"}


def module(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path): path for path in FILES}


def imports(path, nodes=None):
    """(line, level, full name) of what a file imports, of names in packages the modules."""
    package = module(path).split(".") if path.name == "__init__.py" else module(path).split(".")[:-1]
    for node in nodes or ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, 0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{origin}.{alias.name}"
                yield node.lineno, node.level, whole if whole in MODULES else origin


def at_import(path):
    """The nodes that run when a file is imported: not in functions, not for type checkers only."""
    found, waiting = [], [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        found.append(node)
        for child in ast.iter_child_nodes(node):
            typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and not typing_only:
                waiting.append(child)
    return found


def broken(path, rule):
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}" for line, level, name in imports(path) if rule(level, name)
    ]


def test_there_are_files_to_look_at():
    assert {"preprocessors.canny", "controlnet_ext.cli", "controlnet_ext.models", "annotators"} <= MODULES.keys()


def test_packages_import_only_those_before_them():
    for path in FILES:
        later = PACKAGES[PACKAGES.index(path.relative_to(ROOT).parts[0]) + 1 :]
        assert not broken(path, lambda _, name, later=later: name.split(".")[0] in later)


def test_imports_within_controlnet_ext_are_relative_and_between_packages_absolute():
    for path in FILES:
        own = path.relative_to(ROOT).parts[0]
        assert not broken(path, lambda level, name, own=own: level > 0 and name.split(".")[0] != own)
        if own == "controlnet_ext":
            assert not broken(path, lambda level, name: level == 0 and name.split(".")[0] == "controlnet_ext")


def layer(name):
    """0 for what models and hosts stand on, 1 for these, 2 for the rest."""
    part = name.split(".")[1] if "." in name else ""
    return 0 if part in CORE else 1 if part in ("models", "hosts") else 2


def test_control_and_weighting_come_before_models_and_hosts_before_the_rest():
    for path in (path for path in FILES if path.is_relative_to(ROOT / "controlnet_ext")):
        own = layer(module(path))
        assert not broken(path, lambda level, name, own=own: level > 0 and layer(name) > own)


def test_nothing_imports_itself_round_a_corner():
    graph = {module(path): {name for _, _, name in imports(path) if name in MODULES} - {module(path)} for path in FILES}
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)


def test_torch_and_its_like_are_not_at_the_top_of_what_starts_fast():
    quick = ("preprocessors", "controlnet_ext/commands", "controlnet_ext/__init__.py", "controlnet_ext/cli.py")
    for path in (path for path in FILES if path.relative_to(ROOT).as_posix().startswith(quick)):
        top = {name.split(".")[0] for _, _, name in imports(path, at_import(path))}
        assert not top & (HEAVY | {"PIL"}), path


OPEN = {"Image.open", "cv2.imread", "cv2.imreadmulti", "cv2.imdecode", "torch.load", "pickle.load", "load_file"}
WRITE = {"cv2.imwrite", "cv2.imencode", "torch.save", "pickle.dump", "save_file"}
ALLOWED = {"image_in.py", "image_out.py", "pillow.py"}  # parts of files.py; those for weights call none of the above


def test_only_the_reader_and_the_writer_open_images_and_weights():
    for path in FILES:
        calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
        if path.parent != ROOT / "preprocessors" or path.name not in ALLOWED:
            assert calls & (OPEN | WRITE) == set(), path


@pytest.mark.parametrize(
    "code",
    [
        "import controlnet_ext",
        "import annotators, preprocessors; preprocessors.registered()",
        "import preprocessors, numpy; preprocessors.preprocess('canny', numpy.zeros((9, 9, 3), numpy.uint8))",
        "import controlnet_ext.cli; controlnet_ext.cli.main(['preprocessors'])",
        "import controlnet_ext.cli; controlnet_ext.cli.main(['--help'])",
    ],
)
def test_what_starts_fast_loads_neither_torch_nor_diffusers_nor_transformers(code):
    code += f"\nimport sys; print(sorted(set({HEAVY}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout.splitlines()[-1:], done.stderr) == (["[]"], "")


def test_only_the_extension_imports_its_host():
    hosts = {"modules", "gradio", "modules_forge", "launch"}
    found = {path for path in FILES for _, _, name in imports(path) if name.partition(".")[0] in hosts}
    assert found and all("webui" in path.parts for path in found)
