"""The house's language, as far as syntax shows it: names, docstrings, and what a contract may not be made of."""

import ast
import re
from collections import defaultdict
from pathlib import Path

from controlnet_ext.preprocessors import list_preprocessors
from sources import ROOT, parse_all

from controlnet_ext.maps.control_map import MAP_KINDS

FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)

# Past participles that do not end in -ed.
IRREGULAR = frozenset(
    [
        "built",
        "bound",
        "broken",
        "brought",
        "chosen",
        "cut",
        "drawn",
        "done",
        "found",
        "given",
        "gone",
        "held",
        "hidden",
        "kept",
        "known",
        "left",
        "lost",
        "made",
        "meant",
        "met",
        "said",
        "seen",
        "sent",
        "set",
        "shown",
        "split",
        "spread",
        "sunk",
        "taken",
        "thrown",
        "told",
        "understood",
        "worn",
        "written",
    ]
)
VERBS = frozenset(
    {"embed", "feed", "seed", "shed", "speed", "need", "proceed", "set", "split", "cut"}
)  # not participles

# Of variables: the reference of a comparison, a side, a network's states, a field of the registry, the webui's own.
WORDS_OF_THE_TRADE = frozenset({"expected", "left", "hidden", "batched", "processed"})

MAX_FUNCTION_LINES = 60

# Names that each module of a family defines with one meaning: contracts, and names that a host prescribes.
CONTRACTS = frozenset(
    {
        "KIND",
        "T",
        "TARGET",
        "arguments",
        "crop_maps",
        "detect",
        "guide",
        "layout",
        "load",
        "register",
        "run",
        "main",
        "save",
    }
)

VAGUE = ("What ", "Whether ", "Who ", "Where ", "How ", "That ", "As ")
OVERRIDDEN = frozenset({"forward", "close", "reset_parameters"})  # the class or the library says what they do
STATE_DICT = re.compile(r"(Mapping|dict)\[str, Tensor\]")  # has many shapes
ARRAYS = re.compile(r"\b(ndarray|Tensor)\b")
SHAPE = re.compile(r"\([A-Za-z0-9 /*+.-]+(?:, ?[A-Za-z0-9 /*+.…-]*)+\)|any shape|shape")

QUOTED_NAME = re.compile(r"`([A-Za-z_][\w.]*)(?:\([^`]*\))?`")
COMMENT = re.compile(r"(^| )# .*")
WORD = re.compile(r"[A-Za-z_]\w*")
# In docstrings and comments, but of other packages, or names of columns that others see.
FOREIGN = frozenset(
    [
        "create_binary_mask",
        "weights_only",
        "_metadata",
        "controlnet_keep",
        "from_transformer",
        "control_context_scale",
        "ImageRNG",
        "pose_confidences",
        "openpose_json",
    ]
)
# The old name of a flag, wallpapers of a Debian package, and a column that nobody knows.
FOREIGN_PICTURES = re.compile(r"--pictures\b|Picture_\d[AB]_by_freespace|\"picture=a\b")


def split_prose(source, tree):
    """The docstrings and comments of a module, and the set of words in the rest of it."""
    lines = source.splitlines()
    prose = [COMMENT.search(line)[0] for line in lines if COMMENT.search(line)]
    for node in ast.walk(tree):
        if isinstance(node, (*FUNCTION, ast.ClassDef, ast.Module)) and ast.get_docstring(node):
            prose.append(ast.get_docstring(node))
            first, last = node.body[0].lineno - 1, node.body[0].end_lineno
            lines[first:last] = [""] * (last - first)
    return prose, set(WORD.findall("\n".join(COMMENT.sub("", line) for line in lines)))


def local_names(tree):
    """(node, name) of what is bound in functions: parameters and variables."""
    waiting = [(tree, False)]
    while waiting:
        node, is_inside = waiting.pop()
        if isinstance(node, ast.arg):
            yield node, node.arg
        elif is_inside and isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node, node.id
        is_inside = is_inside or isinstance(node, (*FUNCTION, ast.Lambda))
        waiting.extend((child, is_inside) for child in ast.iter_child_nodes(node))


def is_participle(name):
    """Whether a name is one bare past participle."""
    word = name.strip("_").lower()
    return "_" not in word and word not in VERBS and (word in IRREGULAR or (word.endswith("ed") and len(word) > 4))


def definitions(tree, owner=""):
    """(qualified name, node, is public) of the functions and classes at the top of a module and in its classes."""
    for node in tree.body:
        if isinstance(node, (*FUNCTION, ast.ClassDef)):
            name = f"{owner}{node.name}"
            public = not any(part.startswith("_") for part in name.split("."))
            yield name, node, public
            if isinstance(node, ast.ClassDef):
                yield from definitions(node, f"{name}.")


def everything():
    """(path, qualified name, node, is public) of everything that is defined."""
    return [(path, *entry) for path, tree in parse_all().items() for entry in definitions(tree)]


def has_docstring(node):
    return bool((ast.get_docstring(node) or "").strip())


def is_property(node):
    decorators = {ast.unparse(each) for each in node.decorator_list}
    return bool(decorators & {"property", "cached_property"}) or any(d.endswith(".setter") for d in decorators)


def is_overload(node):
    return any(ast.unparse(each) in ("overload", "typing.overload") for each in node.decorator_list)


def own_raises(node):
    """The exceptions that a function raises by name itself, not in functions within it."""
    found, waiting = set(), list(node.body)
    while waiting:
        child = waiting.pop()
        if isinstance(child, (*FUNCTION, ast.ClassDef, ast.Lambda)):
            continue
        if isinstance(child, ast.Raise) and isinstance(child.exc, ast.Call):
            name = ast.unparse(child.exc.func)
            if name.endswith("Error") and name not in ("NotImplementedError", "AssertionError"):
                found.add(name.rpartition(".")[2])
        waiting.extend(ast.iter_child_nodes(child))
    return found


def annotations(node):
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    found = [each.annotation for each in arguments if each.annotation] + ([node.returns] if node.returns else [])
    return [STATE_DICT.sub("", ast.unparse(each)) for each in found]


def test_no_function_is_a_bare_participle():
    wrong = [
        f"{path}: {name}"
        for path, name, node, _ in everything()
        if isinstance(node, FUNCTION) and is_participle(node.name) and not is_property(node)
    ]
    assert wrong == []


def test_functions_fit_on_a_page():
    wrong = [
        f"{path}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for path, tree in parse_all().items()
        for node in ast.walk(tree)
        if isinstance(node, FUNCTION) and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert wrong == []


def test_arrays_are_called_images_and_maps():
    folders = ["annotators", "benchmarks", "controlnet_ext", "examples", "preprocessors", "scripts", "tests", "tools"]
    files = {*ROOT.glob("*.py"), *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))}
    texts = {path: FOREIGN_PICTURES.sub("", path.read_text()).lower() for path in files - {Path(__file__)}}
    assert [str(path.relative_to(ROOT)) for path, text in texts.items() if "picture" in text] == []
    assert len(files) > 500


def test_no_local_variable_or_parameter_is_a_bare_participle():
    wrong = {
        f"{path}:{node.lineno}: {name}"
        for path, tree in parse_all().items()
        if not path.startswith("controlnet_ext/hosts/")
        for node, name in local_names(tree)
        if is_participle(name) and name not in WORDS_OF_THE_TRADE
    }
    assert sorted(wrong) == []


def test_no_exported_name_has_two_meanings():
    places = defaultdict(set)
    for path, tree in parse_all().items():
        for node in tree.body:
            names = []
            if isinstance(node, (*FUNCTION, ast.ClassDef)):
                names = [node.name]
            elif isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names = [node.target.id]
            for name in names:
                if not name.startswith("_") and name not in CONTRACTS:
                    places[name].add(path)
    assert {name: sorted(paths) for name, paths in places.items() if len(paths) > 1} == {}


def test_every_module_with_code_has_a_docstring():
    assert [path for path, tree in parse_all().items() if tree.body and not has_docstring(tree)] == []


def test_every_public_name_has_a_docstring():
    wrong = [
        f"{path}: {name}"
        for path, name, node, public in everything()
        if public
        and not has_docstring(node)
        and not is_overload(node)
        and node.name not in ("forward", "close", "reset_parameters")
    ]
    assert wrong == []


def test_docstrings_begin_with_a_verb_or_a_noun():
    wrong = [
        f"{path}: {name}: {ast.get_docstring(node).splitlines()[0]}"
        for path, name, node, _ in everything()
        if (ast.get_docstring(node) or "").startswith(VAGUE)
    ]
    assert wrong == []


def test_public_functions_of_arrays_state_shapes():
    wrong = [
        f"{path}: {name}"
        for path, name, node, public in everything()
        if public
        and isinstance(node, FUNCTION)
        and node.name != "forward"  # said by its class
        and any(ARRAYS.search(each) for each in annotations(node))
        and not SHAPE.search(ast.get_docstring(node) or "")
    ]
    assert wrong == []


def test_public_functions_name_what_they_raise():
    wrong = []
    for path, name, node, public in everything():
        if public and isinstance(node, FUNCTION):
            missing = [each for each in own_raises(node) if each not in (ast.get_docstring(node) or "")]
            wrong += [f"{path}: {name} raises {each}" for each in sorted(missing)]
    assert wrong == []


def test_names_quoted_in_prose_exist():
    modules = {path: split_prose((ROOT / path).read_text(), tree) for path, tree in parse_all().items()}
    known = FOREIGN.union(*(words for _, words in modules.values()))
    known = known.union(*(path.removesuffix(".py").split("/") for path in parse_all()))
    wrong = [
        f"{path}: `{name}`"
        for path, (prose, _) in modules.items()
        for text in prose
        for name in QUOTED_NAME.findall(text)
        if not known.issuperset(WORD.findall(name))
    ]
    assert wrong == []


def test_the_checks_see_what_they_look_for():
    code = '''
def drawn(image: np.ndarray) -> Tensor:
    """Whether it is."""
    raise ValueError("x")
'''
    (name, node, public), *rest = definitions(ast.parse(code))
    assert (name, public, rest) == ("drawn", True, []) and is_participle(name) and own_raises(node) == {"ValueError"}
    assert (
        ast.get_docstring(node).startswith(VAGUE) and not SHAPE.search("an image") and SHAPE.search("RGB `(H, W, 3)`")
    )
    assert ARRAYS.search(annotations(node)[0])
    assert [has_docstring(ast.parse(text)) for text in ("import x", '""""""', '"""Maps."""')] == [False, False, True]
    assert [is_participle(name) for name in ("resize_map", "found", "_made", "embed", "resized")] == [0, 1, 1, 0, 1]
    code = '"""See `gone.name(2)`."""\nname = "x"  # `y`\n'
    prose, words = split_prose(code, ast.parse(code))
    assert prose == [" # `y`", "See `gone.name(2)`."] and words == {"name", "x"}
    assert QUOTED_NAME.findall(prose[1]) == ["gone.name"]
    code = "for found in []: pass\ndef f(given): return [kept for kept in given], lambda told: 1\nclass A: made = 1"
    assert {name for _, name in local_names(ast.parse(code))} == {"given", "kept", "told"}


def test_roles_of_preprocessors_are_fields_of_the_registry_and_not_comparisons_with_names():
    names = {word.casefold() for each in list_preprocessors() for word in (each.name, each.label, *each.aliases)}
    names -= {*MAP_KINDS}  # which control models compare
    wrong = []
    for path, tree in parse_all().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare) and not path.startswith("preprocessors/"):
                constants = {each.value for each in ast.walk(node) if isinstance(each, ast.Constant)} - {None}
                if constants & names or (constants and re.search(r"\bmakes\b", ast.unparse(node))):
                    wrong.append(f"{path}:{node.lineno}: {ast.unparse(node)}")
    assert wrong == []
