"""Requests and responses, and the exports that the platform calls."""

import json
import sys
import traceback
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple

from fnctl._binding import Err, Ok, environment as _environment, streams, types
from fnctl.error import BadRequest, Error

# What one read and one write of a wasi:io stream move at most; 4096 is the limit of blocking_write_and_flush.
_READ = 64 * 1024
_WRITE = 4096


@dataclass
class Request:
    """A request, with its whole body. Header names are in lower case."""

    method: str = "GET"
    path: str = "/"
    headers: List[Tuple[str, bytes]] = field(default_factory=list)
    body: bytes = b""

    def header(self, name: str) -> Optional[str]:
        """The first header of this name."""
        found = (value for key, value in self.headers if key.lower() == name.lower())
        value = next(found, None)
        return None if value is None else value.decode("latin-1")

    def json(self) -> Any:
        """The body as JSON. Raises BadRequest if it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as problem:
            raise BadRequest(f"the body is not JSON: {problem}") from None


@dataclass
class Response:
    """A response."""

    status: int = 200
    headers: List[Tuple[str, str]] = field(default_factory=list)
    body: bytes = b""

    @classmethod
    def json(cls, value: Any, status: int = 200) -> "Response":
        """A response with a value as JSON. Raises ValueError if JSON cannot express it."""
        body = json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
        return cls(status, [("content-type", "application/json")], body)


def environment() -> Dict[str, str]:
    """The variables under [env] in function.toml. `os.environ` has those of the machine that built the component."""
    return dict(_environment.get_environment())


def answer(app: Any, request: Request) -> Response:
    """What an app answers, errors included: the function to call in a unit test."""
    try:
        result = app.handle(request)
        return result if isinstance(result, Response) else Response.json(result)
    except Error as error:
        return Response.json({"error": error.message}, error.status)
    except Exception:
        # The caller learns no details; the log has them.
        traceback.print_exc(file=sys.stderr)
        return Response.json({"error": "the function failed; its log has the traceback"}, 500)


def export(app: Any) -> Tuple[type, type]:
    """The two classes that the component exports, from the class of an app.

    `app()` is called once per instance, before its first request. Its `handle(request)` is called once per request and
    returns a Response, or a value that becomes JSON. `Error`s become responses of their status.
    """
    instance: List[Any] = []

    class IncomingHandler:
        """wasi:http/incoming-handler"""

        def handle(self, request: Any, response_out: Any) -> None:
            try:
                with request:
                    incoming = _read(request)
                response = answer(_started(), incoming)
            except Error as error:
                response = Response.json({"error": error.message}, error.status)
            _write(response, response_out)

    class Lifecycle:
        """fnctl:guest/lifecycle"""

        def init(self) -> None:
            try:
                _started()
            except Exception as problem:
                raise Err(f"{type(problem).__name__}: {problem}") from None

    def _started() -> Any:
        if not instance:
            instance.append(app())
        return instance[0]

    return IncomingHandler, Lifecycle


def _method(method: Any) -> str:
    if isinstance(method, types.Method_Other):
        return method.value
    return type(method).__name__.removeprefix("Method_").upper()


def _read(request: Any) -> Request:
    body = bytearray()
    with request.consume() as incoming, incoming.stream() as stream:
        while True:
            try:
                body += stream.blocking_read(_READ)
            except Err as error:
                if isinstance(error.value, streams.StreamError_Closed):
                    break
                raise BadRequest("the body broke off") from None
    with request.headers() as fields:
        headers = [(name.lower(), value) for name, value in fields.entries()]
    return Request(_method(request.method()), request.path_with_query() or "/", headers, bytes(body))


def _write(response: Response, response_out: Any) -> None:
    fields = types.Fields()
    fields.set("content-length", [str(len(response.body)).encode()])
    for name, value in response.headers:
        if name.lower() == "content-length":
            continue
        try:
            fields.append(name, value.encode("latin-1", "replace"))
        except Err:
            # A header that HTTP or the host forbids is left out; the answer matters more.
            print(f"the header {name!r} may not be sent", file=sys.stderr)
    outgoing = types.OutgoingResponse(fields)
    try:
        outgoing.set_status_code(response.status)
    except Err:
        outgoing.set_status_code(500)
    body = outgoing.body()
    types.ResponseOutparam.set(response_out, Ok(outgoing))
    try:
        with body.write() as stream:
            for start in range(0, len(response.body), _WRITE):
                stream.blocking_write_and_flush(response.body[start : start + _WRITE])
        types.OutgoingBody.finish(body, None)
    except Err:
        # The caller is gone; it needs no rest.
        pass

