"""The page at / and /docs: a list of the routes, for people who open the server's address in a browser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from .. import __version__
from .route_table import ApiRoute

PAGE_PATHS = ("/", "/docs")
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
PAGE_STYLE = "body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}td{padding:0 1em 0 0}"


def create_page_routes(routes: Sequence[ApiRoute], get_checkpoint_name: Callable[[], str]) -> list[Route]:
    """Return the routes of the page, which lists `routes`; it has no script and loads nothing."""

    def show(_: Request) -> Response:
        return HTMLResponse(_make_page(routes, get_checkpoint_name()), headers=PAGE_HEADERS)

    return [Route(path, show) for path in PAGE_PATHS]


def _make_page(routes: Sequence[ApiRoute], checkpoint_name: str) -> str:
    rows = "\n".join(
        f"<tr><td>{route.method}<td><code>{escape(route.path)}</code><td>{escape(route.summary)}" for route in routes
    )
    return f"""<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>controlnet-ext</title><style>{PAGE_STYLE}</style>
<h1>controlnet-ext {escape(__version__)}</h1>
<p>This server makes images with the model <b>{escape(checkpoint_name)}</b> for clients of stable-diffusion-webui with
sd-webui-controlnet. It has no user interface. Fields of requests and answers:
<a href="/openapi.json">/openapi.json</a>.
<table>
{rows}
</table>
"""
