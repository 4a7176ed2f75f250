"""Who may ask, and what browsers may do with the answers: plain ASGI, before any route."""

import hmac
import json
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from harmoniad_jax.errors import UserError

# Asked by load balancers, which have no token, and by browsers before they know it; neither
# page holds a secret.
OPEN_PATHS = ("/", "/docs", "/healthz", "/readyz")
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
SHORTEST_TOKEN = 16


class RefusedError(Exception):
    """A request that is answered with a status and one line."""

    def __init__(self, status: int, message: str, retry_after: int | None = None):
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {"Retry-After": str(retry_after)} if retry_after else {}


class Guards:
    """Checks token, host, origin and size, and sets the headers that browsers obey."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        policy: str,
        largest_body: int,
        token: str | None = None,
        hosts: Iterable[str] | None = LOCAL_NAMES,
    ):
        """Stands before an application.

        Args:
          app: what is asked if all is well.
          policy: the Content-Security-Policy.
          largest_body: in bytes.
          token: that clients must send; None: none is asked for.
          hosts: names that clients may call this server by; None: any. A page of another
            site that points its name at this machine would otherwise be let in.
        """
        self._app, self._largest_body = app, largest_body
        self._token = token.encode() if token else None
        self._hosts = None if hosts is None else {name.lower() for name in hosts}
        self._headers = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
            "Cache-Control": "no-store",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        answered = False

        async def send_with_headers(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers[name] = value
            await send(message)

        try:
            self._check(scope)
        except RefusedError as refusal:
            await _answer(refusal, send_with_headers)
            return
        try:
            await self._app(scope, self._counted(receive), send_with_headers)
        except Exception:
            # Raised once more after it was logged and answered, to close the connection.
            if not answered:
                raise

    def _check(self, scope: Scope) -> None:
        """Raises RefusedError."""
        headers = Headers(scope=scope)
        if self._hosts is not None and _host(headers) not in self._hosts:
            raise RefusedError(
                400,
                "this server is called localhost; start it with --host to give it "
                "another name",
            )
        if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            if scope["method"] not in ("GET", "HEAD") or scope["path"] != "/":
                raise RefusedError(403, "pages of other sites may not ask this server")
        if self._token and scope["path"] not in OPEN_PATHS:
            scheme, _, token = headers.get("authorization", "").partition(" ")
            # Compared in constant time: else the time tells how much of it is right.
            right = hmac.compare_digest(token.strip().encode(), self._token)
            if scheme.lower() != "bearer" or not right:
                raise RefusedError(
                    401, "a token is needed: send the header 'Authorization: Bearer TOKEN'"
                )
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            raise RefusedError(400, "the header Content-Length is not a number")
        self._check_length(int(length[:20]))

    def _check_length(self, length: int) -> None:
        if length > self._largest_body:
            raise RefusedError(
                413,
                f"the request is larger than {self._largest_body / 1e6:g} MB; send fewer "
                "or smaller images, or raise --max_megabytes",
            )

    def _counted(self, receive: Receive) -> Receive:
        """A body that was announced as smaller, or not at all, is cut off as well."""
        received = 0

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            self._check_length(received)
            return message

        return receive_counted


def _host(headers: Headers) -> str:
    host = headers.get("host", "").lower()
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host


async def _answer(refusal: RefusedError, send: Send) -> None:
    body = json.dumps({"error": refusal.message}).encode()
    headers = {"Content-Type": "application/json", **refusal.headers}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    await send(
        {
            "type": "http.response.start",
            "status": refusal.status,
            "headers": [
                (name.lower().encode(), value.encode()) for name, value in headers.items()
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})


def read_token(path: str) -> str:
    """The token that a file holds.

    Raises:
      UserError: it cannot be read, or is short.
    """
    try:
        with open(path, encoding="ascii") as file:
            token = file.read(4096).strip()
    except (OSError, ValueError) as error:
        raise UserError(f"--token_file={path} cannot be read ({error}).") from None
    if len(token) < SHORTEST_TOKEN or not token.isprintable() or " " in token:
        raise UserError(
            f"--token_file={path} must hold one word of {SHORTEST_TOKEN} characters or "
            "more; make one with: openssl rand -hex 32"
        )
    return token
