"""Who may use the HTTP server: its token, and the two checks that stand before every request.

Guarantees: no request reaches the server or the live page unless its Host and Origin are among those allowed and it
shows the token (or, for the page alone, a key made of it). Neither is ever logged; both are compared in constant time.
Does not guarantee secrecy on the way: that is TLS's part (see `http.serve`).
"""

import hashlib
import hmac
import os
import re
from dataclasses import dataclass
from html import escape
from pathlib import Path
from secrets import token_urlsafe
from urllib.parse import urlencode

from filelock import FileLock
from mcp.server.transport_security import TransportSecurityMiddleware, TransportSecuritySettings
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tunewright.pipeline.errors import InvalidInput, Unavailable
from tunewright.pipeline.settings import Home

MCP_PATH = "/mcp"
TOKEN_BYTES = 32
# RFC 6750's alphabet; shorter ones can be guessed.
TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{32,}=*")
NEVER_KEPT = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"}


def token_path(home: Home) -> Path:
    return home.root / "http-token"


def ensure_token(home: Home) -> str:
    """The home's bearer token; made, and kept for its owner alone (0600), by whoever serves first.

    Raises InvalidInput where the file holds something else, Unavailable where it cannot be written.
    """
    path = token_path(home)
    try:
        # Two servers that start at once must not give out two tokens.
        with FileLock(path.with_name(f"{path.name}.lock"), thread_local=False):
            if not path.exists():
                _write_secret(path, token_urlsafe(TOKEN_BYTES))
        path.chmod(0o600)
    except OSError as error:
        raise Unavailable(
            "no_token_file", f"The token that opens the server cannot be kept in {path}: {error.strerror}.",
            allowed="Free some space on the disk, or name another data home.",
            next="tunewright --home DIR serve --http", done="Nothing was started.",
        ) from error  # fmt: skip
    token = path.read_text(encoding="utf-8", errors="replace").strip()
    if not TOKEN.fullmatch(token):
        raise InvalidInput(
            "bad_token_file",
            f"{path} holds no token.",
            allowed="A token is at least 32 letters, digits and any of . _ ~ + / - on one line.",
            next=f"delete {path}, and a new token is made at the next start",
        )
    return token


def _write_secret(path: Path, text: str) -> None:
    """Writes beside `path` and renames; no other user can open it at any moment."""
    partial = path.with_name(f".partial-{path.name}")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(f"{text}\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


@dataclass(frozen=True)
class Access:
    """What opens the server. `cookie` names the page's cookie: browsers give cookies to every port of a host."""

    token: str
    cookie: str
    is_tls: bool

    @property
    def page_key(self) -> str:
        """Opens the live page, which only shows, and nothing else: it may stand in a link and in a cookie."""
        return hmac.new(self.token.encode(), b"tunewright live page", hashlib.sha256).hexdigest()

    def opens_all(self, authorization: str | None) -> bool:
        """Whether the Authorization header bears the token."""
        scheme, _, given = (authorization or "").partition(" ")
        return scheme.lower() == "bearer" and _is_same(given.strip(), self.token)

    def opens_page(self, given: str | None) -> bool:
        return _is_same(given, self.page_key) or _is_same(given, self.token)


def _is_same(given: str | None, secret: str) -> bool:
    return given is not None and hmac.compare_digest(given.encode(), secret.encode())


class PlaceCheck:
    """Refuses what was sent to another name (421: DNS rebinding) or by another site's page (403)."""

    def __init__(self, app: ASGIApp, allowed: TransportSecuritySettings) -> None:
        self._app = app
        self._check = TransportSecurityMiddleware(allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Request(scope).headers
        refused = await self._check.validate_request(Request(scope))
        if refused is None:
            await self._app(scope, receive, send)
            return
        header, option = ("Host", "--allow-host") if refused.status_code == 421 else ("Origin", "--allow-origin")
        text = (
            f"{header.lower()}_not_allowed: The {header} {headers.get(header)!r} is not one of this server's. "
            f"Next: tunewright serve --http {option} {'NAME' if header == 'Host' else 'ORIGIN'}, if you know it. "
            "Nothing was done."
        )
        await PlainTextResponse(text, refused.status_code, NEVER_KEPT)(scope, receive, send)


class TokenCheck:
    """Lets in who shows the token; of the live page also a browser that was signed in by `?token=`."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._access.opens_all(Request(scope).headers.get("authorization")):
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        is_page = request.method in ("GET", "HEAD") and request.url.path != MCP_PATH
        if is_page and self._access.opens_page(request.query_params.get("token")):
            await self._sign_in(request)(scope, receive, send)
        elif is_page and "token" not in request.query_params and self._has_cookie(request):
            await self._app(scope, receive, send)
        else:
            text = (
                "unauthorized: The request bears no token of this server. Agents send the header "
                "Authorization: Bearer TOKEN, browsers open the page once with ?token=TOKEN; it is in http-token in "
                "the data home. Nothing was done."
            )
            headers = {**NEVER_KEPT, "WWW-Authenticate": 'Bearer realm="tunewright"'}
            await PlainTextResponse(text, 401, headers)(scope, receive, send)

    def _has_cookie(self, request: Request) -> bool:
        return self._access.opens_page(request.cookies.get(self._access.cookie))

    def _sign_in(self, request: Request) -> Response:
        """Sets the cookie and moves on to the same page without the token.

        Not by a redirect: a browser that came from another site's link would not send a strict cookie along with it.
        """
        kept = urlencode([(name, value) for name, value in request.query_params.multi_items() if name != "token"])
        target = escape(f"./?{kept}" if kept else "./")
        page = (
            '<!doctype html><html lang="en"><title>Tunewright</title>'
            f'<meta http-equiv="refresh" content="0; url={target}"><a href="{target}">Go on</a>'
        )
        response = HTMLResponse(page, headers={**NEVER_KEPT, "Content-Security-Policy": "default-src 'none'"})
        response.set_cookie(
            self._access.cookie, self._access.page_key, httponly=True, samesite="strict", secure=self._access.is_tls
        )
        return response
