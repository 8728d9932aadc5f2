"""Pages that mkdocs makes from the code: the commands' help, the table of preprocessors, the fields of the HTTP API.

Used by mkdocs.yml. Nothing here is part of the installed package.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "build" / "docs-source"  # the package as it is installed: mkdocstrings follows no appended __path__
WIDE = "---\nhide: [toc]\n---\n\n"  # a page with a wide table


def on_startup(command: str, dirty: bool) -> None:
    """Copy the package's Python files to `SOURCE` in the layout of a wheel."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    package = SOURCE / "controlnet_ext"
    for folder, target in (("controlnet_ext", ""), ("preprocessors", "preprocessors"), ("annotators", "annotators")):
        for path in (ROOT / folder).rglob("*.py"):
            copy = package / target / path.relative_to(ROOT / folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and the pages whose text lies at the root of the repository."""
    pages = {
        "reference/command.md": command_page(),
        "reference/preprocessors.md": preprocessors_page(),
        "reference/http-schema.md": http_page(),
        "contributing.md": root_page("CONTRIBUTING.md"),
        "changelog.md": root_page("CHANGELOG.md"),
    }
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def run_python(*arguments: str) -> str:
    """Return the standard output of this Python with the checkout first on its path. Raises CalledProcessError."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, *arguments], check=True, env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE
    ).stdout


def command_page() -> str:
    """The help of `controlnet-ext` and of each of its commands."""
    code = """
import contextlib, io, json, pkgutil
from controlnet_ext import cli
from controlnet_ext.cli import commands

def help_of(*words):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        cli.main([*words, "--help"])
    return out.getvalue().strip()

names = sorted(module.name for module in pkgutil.iter_modules(commands.__path__))
print(json.dumps({"": help_of(), **{name: help_of(name) for name in names}}))
"""
    helps: dict[str, str] = json.loads(run_python("-c", code))
    lines = [
        "# Command line",
        "",
        "The output of `controlnet-ext --help` and of `--help` after each command. Results go to files or to standard",
        "output; messages and progress go to standard error. Exit codes: 0 done, 1 something failed while working,",
        "2 refused before any work, 130 interrupted.",
    ]
    for name, text in helps.items():
        lines += ["", f"## {f'controlnet-ext {name}'.strip()}", "", "```text", text, "```"]
    return "\n".join(lines) + "\n"


def preprocessors_page() -> str:
    """The registry as a table."""
    entries: list[dict[str, Any]] = json.loads(run_python("-m", "controlnet_ext.cli", "preprocessors", "--json"))
    lines = [
        "# Preprocessors",
        "",
        f"All {len(entries)} preprocessors, as `controlnet-ext preprocessors` lists them; `--json` adds the",
        "repository, path and hash of each weights file. Each of them also takes `resolution` (64..2048): the short",
        "side in pixels at which it works, by default the image's own. The [gallery](gallery.md) shows the maps.",
        "",
        "The second column is the kind of the map, then words in the names of control models that read it. The last",
        "column is what is loaded, then its license.",
        "",
        "| name, other names | map, *read by* | parameters (default) | weights, *license* |",
        "|---|---|---|---|",
    ]
    for entry in entries:
        names = [f"`{name}`" for name in (entry["name"], *entry["aliases"])]
        licenses = dict.fromkeys(file["licence"] for file in entry["weights"])
        parameters = [parameter for parameter in entry["parameters"] if parameter["name"] != "resolution"]
        cells = [
            "<br>".join(names),
            "<br>".join([entry["makes"], *(["needs a mask"] if entry["masked"] else ()), *italic(entry["feeds"])]),
            "<br>".join(parameter_text(parameter) for parameter in parameters),
            "<br>".join([*weights_names(entry["weights"]), *italic(licenses)]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return WIDE + "\n".join(lines) + "\n"


def italic(words: Iterable[str]) -> list[str]:
    """The words in italics."""
    return [f"*{word}*" for word in words]


def weights_names(files: list[dict[str, Any]]) -> list[str]:
    """What a preprocessor loads: names of files, or of repositories where transformers or diffusers read a folder."""
    is_folder = any(Path(file.get("path", "")).name in ("config.json", "model_index.json") for file in files)
    names = [file["repo"] if is_folder else Path(file.get("path") or file["url"]).name for file in files]
    return list(dict.fromkeys(names))


def parameter_text(parameter: dict[str, Any]) -> str:
    """A parameter's name, range and default in one phrase."""
    default = parameter["default"]
    ends = [parameter.get(key) for key in ("least", "most")]
    span = "" if None in ends else f" {ends[0]:g}..{ends[1]:g}"
    return f"`{parameter['name']}`{span} ({'none' if default is None else str(default).lower()})"


def http_page() -> str:
    """The routes and the fields of their requests, from the OpenAPI document of a server with default bounds."""
    document: dict[str, Any] = json.loads(run_python("-m", "controlnet_ext.server.openapi"))
    schemas = document["components"]["schemas"]
    lines = [
        "# HTTP routes and fields",
        "",
        "From the OpenAPI document of a server with the default bounds; a running server gives its own at",
        "`/openapi.json`. It lists the canonical spellings; [HTTP API](http.md) says what else is read. Requests and",
        "answers are JSON; images are base64.",
        "",
        "| route | | request | answer |",
        "|---|---|---|---|",
    ]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            answer = operation["responses"]["200"]["content"]["application/json"]["schema"]
            query = ", ".join(f"`?{parameter['name']}`" for parameter in operation.get("parameters", ()))
            cells = (
                f"`{method.upper()} {path}`",
                operation["summary"],
                schema_text(body) or query,
                schema_text(answer),
            )
            lines.append(f"| {' | '.join(cells)} |")
    for name in sorted(schemas):
        schema = schemas[name]
        lines += ["", f"## {name}", ""]
        if "properties" not in schema:
            lines.append(f"{schema_text(schema)} {cell(schema.get('description', ''))}".strip())
            continue
        lines += ["| field | value | |", "|---|---|---|"]
        for field, value in schema["properties"].items():
            words = value.get("description", "") + (" *(required)*" if field in schema.get("required", ()) else "")
            lines.append(f"| `{field}` | {schema_text(value)} | {cell(words)} |")
        if "description" in schema:
            lines += ["", cell(schema["description"])]
    return "\n".join(lines) + "\n"


def schema_text(schema: dict[str, Any]) -> str:
    """A JSON schema in a few words, with links to the tables of named ones."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return cell(" or ".join(schema_text(each) for each in schema[key]) + default_text(schema))
    if "const" in schema:
        return cell(f"`{json.dumps(schema['const'])}`")
    if "enum" in schema:
        return cell(", ".join(f"`{json.dumps(value)}`" for value in schema["enum"]) + default_text(schema))
    kind = schema.get("type", "anything" if schema else "")
    words = " or ".join(kind) if isinstance(kind, list) else kind
    if words == "array":
        return f"array of {schema_text(schema.get('items', {})) or 'anything'}"
    if words == "object" and schema.get("properties"):
        fields = (f"`{name}` {schema_text(value)}".strip() for name, value in schema["properties"].items())
        return f"object with {', '.join(fields)}"
    ends = [schema.get("minimum"), schema.get("maximum")]
    if ends != [None, None]:
        words += " " + "..".join("" if end is None else f"{end:g}" for end in ends)
    return cell(words + default_text(schema))


def default_text(schema: dict[str, Any]) -> str:
    """The default of a schema in parentheses, or nothing."""
    return f" (default `{json.dumps(schema['default'])}`)" if schema.get("default", "") != "" else ""


def cell(text: str) -> str:
    """Text for a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def root_page(name: str) -> str:
    """A page whose text is a file at the root; its links into docs/ are made relative to docs/."""
    return (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
