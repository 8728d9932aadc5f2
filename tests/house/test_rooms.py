"""The house's rules, read off the syntax of every file: which room may import which, and who may open files."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest
from sources import FILES, PACKAGES, ROOT, parse

HEAVY = {"torch", "diffusers", "transformers", "accelerate", "peft", "torchvision", "controlnet_aux"}
FLOORS = (  # a room imports rooms of lower floors, and itself
    {"errors"},
    {"annotators", "files"},
    {"maps"},
    {"preprocessors"},
    {"guidance"},
    {""},  # controlnet_ext/__init__.py: what people import
    {"models"},
    {"hosts"},
    {"embedded"},
    {"generation", "batch"},
    {"training", "scoring"},
    {"sdwebui"},
    {"server"},
    {"webui"},  # routes of the server inside the host's own
    {"cli"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
LATE = {("controlnet_ext/__init__.py", name) for name in ("models", "hosts", "embedded")}  # imported when called


def module(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "controlnet_ext" else ("controlnet_ext", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path): path for path in FILES}


def room(name):
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports(path, nodes=None):
    """(line, level, full name) of what a file imports, of names in packages the modules."""
    package = module(path).split(".") if path.name == "__init__.py" else module(path).split(".")[:-1]
    for node in nodes or ast.walk(parse(path)):
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
    found, waiting = [], [parse(path)]
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
    expected = {"controlnet_ext.preprocessors.edges.canny", "controlnet_ext.cli", "controlnet_ext.annotators"}
    assert expected <= MODULES.keys()
    assert {room(name) for name in MODULES} <= FLOOR.keys()


def test_all_imports_within_the_project_are_relative():
    """So that the package can be loaded under any name, as in the webui."""
    for path in FILES:
        assert not broken(path, lambda level, name: level == 0 and name.split(".")[0] in PACKAGES)


def test_rooms_import_only_rooms_below_them():
    wrong = []
    for path in FILES:
        own = room(module(path))
        for line, level, name in imports(path):
            other = room(name)
            late = (path.relative_to(ROOT).as_posix(), other) in LATE
            if level and own != other and FLOOR[other] >= FLOOR[own] and not late:
                wrong.append(f"{path.relative_to(ROOT)}:{line} ({own}) imports {name}")
    assert wrong == []


def test_nothing_imports_itself_round_a_corner():
    graph = {module(path): {name for _, _, name in imports(path) if name in MODULES} - {module(path)} for path in FILES}
    graph = {name: {other for other in found if not name.startswith(f"{other}.")} for name, found in graph.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)


def test_at_most_two_files_lie_loose_in_the_package():
    assert {path.name for path in (ROOT / "controlnet_ext").glob("*.py")} <= {"__init__.py", "errors.py"}


def test_torch_and_its_like_are_not_at_the_top_of_what_starts_fast():
    quick = ("preprocessors", "controlnet_ext/cli", "controlnet_ext/__init__.py")
    for path in (path for path in FILES if path.relative_to(ROOT).as_posix().startswith(quick)):
        top = {name.split(".")[0] for _, level, name in imports(path, at_import(path)) if not level}
        assert not top & (HEAVY | {"PIL"}), path


OPEN = {"Image.open", "cv2.imread", "cv2.imreadmulti", "cv2.imdecode", "torch.load", "pickle.load", "load_file"}
WRITE = {"cv2.imwrite", "cv2.imencode", "torch.save", "pickle.dump", "save_file"}
ALLOWED = {"image_reader.py", "image_writer.py"}  # those for weights call none of the above


def test_only_the_reader_and_the_writer_open_images_and_weights():
    for path in FILES:
        calls = {ast.unparse(node.func) for node in ast.walk(parse(path)) if isinstance(node, ast.Call)}
        if path.parent != ROOT / "controlnet_ext/files" or path.name not in ALLOWED:
            assert calls & (OPEN | WRITE) == set(), path


@pytest.mark.parametrize(
    "code",
    [
        "import controlnet_ext",
        "from controlnet_ext import preprocessors; preprocessors.list_preprocessors()",
        "import controlnet_ext, numpy; controlnet_ext.preprocess('canny', numpy.zeros((9, 9, 3), numpy.uint8))",
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
    found = {
        path for path in FILES for _, level, name in imports(path) if not level and name.partition(".")[0] in hosts
    }
    assert found and all("webui" in path.parts for path in found)
