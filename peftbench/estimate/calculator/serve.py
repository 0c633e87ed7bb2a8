"""Serve the calculator's page to this machine alone, with a door that computes a choice exactly by `estimate`.

GET / is the page; POST /estimate takes {"choice": ..., "config": "..."} and returns {"answer": ...} or {"error": ...}.
The server listens on 127.0.0.1 and serves requests for that name only, so that a page of another site, which a
browser opens beside this one, gets no answer even where a name of its own leads here.
"""

from __future__ import annotations

import json
import threading
import traceback
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from peftbench.errors import UserError
from peftbench.estimate.calculator import exact, page

HOST = "127.0.0.1"
PORT = 8765
LARGEST_BODY = 256 * 1024  # bytes; a config.json has a few thousand
SECONDS = 10  # that a request may take to arrive
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'"
)


class Server(ThreadingHTTPServer):
    """The server, which simulates one step at a time."""

    daemon_threads = True

    def __init__(self, port: int = PORT) -> None:
        """Bind to the port; 0 takes any that is free.

        Raises:
            UserError: The port is taken.
        """
        self.html = page.html(served=True).encode()
        self.one_at_a_time = threading.Lock()
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise UserError(f"--port {port}: {error.strerror or error}; give another port, or 0 for any") from error

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_port}/"


class _Refused(Exception):
    """A request that gets an error.

    Attributes:
        status: The status of the answer.
    """

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = SECONDS
    server_version, sys_version = "peftbench", ""

    def do_GET(self) -> None:
        try:
            self._check_host()
            if self.path.partition("?")[0] not in ("/", "/index.html"):
                raise _Refused(HTTPStatus.NOT_FOUND, "there is one page only, at /")
        except _Refused as error:
            self._send_json({"error": str(error)}, error.status)
            return
        self._send(self.server.html, "text/html; charset=utf-8", HTTPStatus.OK)

    def do_POST(self) -> None:
        try:
            self._check_host()
            self._send_json({"answer": self._computed(self._body())}, HTTPStatus.OK)
        except _Refused as error:
            self._send_json({"error": str(error)}, error.status)
        except UserError as error:
            self._send_json({"error": str(error)}, HTTPStatus.UNPROCESSABLE_ENTITY)
        except Exception as error:  # a network that transformers cannot make, whatever it raises
            traceback.print_exc()
            self._send_json(
                {"error": f"this step could not be simulated ({type(error).__name__}: {error})"},
                HTTPStatus.INTERNAL_SERVER_ERROR,
            )

    def _computed(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        with self.server.one_at_a_time:
            return exact.answer(asked)

    def _check_host(self) -> None:
        """Refuse names that are not this machine's own, and pages of other sites."""
        names = [f"{name}:{self.server.server_port}" for name in (HOST, "localhost")]
        if self.headers.get("Host") not in names:
            raise _Refused(HTTPStatus.FORBIDDEN, f"this server answers for {names[0]} only")
        origin = self.headers.get("Origin")
        if origin is not None and origin not in [f"http://{name}" for name in names]:
            raise _Refused(HTTPStatus.FORBIDDEN, "this server answers its own page only")

    def _body(self) -> dict[str, Any]:
        if self.path != "/estimate":
            raise _Refused(HTTPStatus.NOT_FOUND, "POST goes to /estimate")
        if self.headers.get_content_type() != "application/json":
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send application/json")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "send a Content-Length")
        if int(length) > LARGEST_BODY:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"send at most {LARGEST_BODY:,} bytes")
        try:
            read = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise _Refused(HTTPStatus.BAD_REQUEST, f"that is no JSON: {error}") from error
        if not isinstance(read, dict):
            raise _Refused(HTTPStatus.BAD_REQUEST, "send an object")
        return read

    def _send_json(self, content: Mapping[str, Any], status: HTTPStatus) -> None:
        self._send(json.dumps(content).encode(), "application/json", status)

    def _send(self, body: bytes, kind: str, status: HTTPStatus) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Content-Security-Policy", POLICY),
            ("X-Content-Type-Options", "nosniff"),
            ("Cache-Control", "no-store"),
            ("Connection", "close"),
        ):
            self.send_header(name, value)
        self.close_connection = True
        with suppress(ConnectionError):  # a reader who has left
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet: the terminal shows the address and errors alone."""
