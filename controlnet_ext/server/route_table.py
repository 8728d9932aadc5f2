"""How routes are declared: a function that answers, under a decorator with its path and the schemas of request and
response, and the parts of which schemas are made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Literal, Protocol, TypeVar

from starlette.routing import Route

from ..sdwebui.fields import JsonObject, Schema
from .http import Endpoint, get_endpoint, json_endpoint, queued_endpoint
from .worker import RequestWorker


@dataclass(frozen=True)
class NamedSchema:
    """A JSON schema with its name among the components of an OpenAPI document."""

    name: str
    schema: Schema


@dataclass(frozen=True)
class ApiRoute:
    """A route with its description: `request` is the table or schema of the body, None where no body is read;
    `query_flags` are booleans in the query; `is_open` routes need no token."""

    method: Literal["GET", "POST"]
    path: str
    summary: str
    endpoint: Endpoint
    response: NamedSchema
    request: type[JsonObject] | NamedSchema | None = None
    query_flags: tuple[str, ...] = ()
    is_open: bool = False

    def to_starlette(self) -> Route:
        """Return the route as starlette has it."""
        return Route(self.path, self.endpoint, methods=[self.method])


class RouteContext(Protocol):
    """The least that an answer is given."""

    @property
    def worker(self) -> RequestWorker:
        """The worker that queued answers are handed to."""
        ...


ContextT = TypeVar("ContextT", bound=RouteContext)
Answer = TypeVar("Answer", bound=Callable[..., Any])


class RouteTable(Generic[ContextT]):
    """Routes in the order in which they are added, whose answers are given a context of one type."""

    def __init__(self) -> None:
        self._factories: list[Callable[[ContextT], ApiRoute]] = []

    def add(
        self,
        method: Literal["GET", "POST"],
        path: str,
        summary: str,
        response: NamedSchema,
        *,
        request: type[JsonObject] | NamedSchema | None = None,
        query_flags: tuple[str, ...] = (),
        is_open: bool = False,
        is_queued: bool = False,
    ) -> Callable[[Answer], Answer]:
        """Return a decorator that adds a route, fields as in `ApiRoute`.

        The decorated function is called with the context and the JSON of the body, or with the context and the
        `Request` where no `request` is declared, and returns JSON. With `is_queued` the worker calls it, with a third
        argument: the event that is set when nobody waits for the answer any more. Else it is called at once.
        """

        def register(answer: Answer) -> Answer:
            def create(context: ContextT) -> ApiRoute:
                function = partial(answer, context)
                if request is None:
                    endpoint = get_endpoint(function)
                else:
                    endpoint = queued_endpoint(function, context.worker) if is_queued else json_endpoint(function)
                return ApiRoute(method, path, summary, endpoint, response, request, query_flags, is_open)

            self._factories.append(create)
            return answer

        return register

    def create(self, context: ContextT) -> list[ApiRoute]:
        """Return all routes, their answers bound to `context`."""
        return [create(context) for create in self._factories]


# Parts of the schemas


def make_object_schema(properties: Schema, *optional: str) -> Schema:
    """Return the schema of an object with these properties, all but the optional ones required."""
    names = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, **({"required": names} if names else {})}


def make_list_schema(items: Schema) -> Schema:
    """Return the schema of a list of such items."""
    return {"type": "array", "items": items}


def make_nullable_schema(kind: str) -> Schema:
    """Return the schema of a value of this JSON type, or null."""
    return {"type": [kind, "null"]}


TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
BOOLEAN: Schema = {"type": "boolean"}
NAMES = make_list_schema(TEXT)
IMAGES = make_list_schema({"type": "string", "format": "byte", "description": "A PNG in base64"})
