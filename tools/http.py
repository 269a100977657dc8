"""MCP over streamable HTTP, and the live page beside it.

Guarantees: only who has the token is served (`http_access`), by default on this machine alone; a session lives through
days of silence; SIGTERM ends the process within STOP_WITHIN_S whatever is going on, while jobs, which are processes of
their own, go on. Does not guarantee that a call that is cut off by SIGTERM was done: what it writes is whole or absent.
"""

import asyncio
import errno
import ipaddress
import json
import logging
import os
import socket
import ssl
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

# Both are the MCP SDK's own dependencies: it builds a Starlette application, and names uvicorn to serve it.
import uvicorn
from mcp.server.transport_security import TransportSecuritySettings
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from tunewright.pipeline.errors import Conflict, InvalidInput, Unavailable
from tunewright.pipeline.workspace import Workspace
from tunewright.tools.framework import TunewrightServer
from tunewright.tools.http_access import MCP_PATH, Access, PlaceCheck, TokenCheck, ensure_token, token_path

DEFAULT_PORT = 8765
# The SDK forgets a session after 30 silent minutes, less than a training. Not never: clients that were killed leave
# theirs behind, and at 10,000 the SDK takes no more.
SESSION_IDLE_S = 7 * 24 * 3600
# For calls in progress to end by themselves; then they are cancelled; then the process ends.
GRACE_S, STOP_WITHIN_S = 1, 2.5
# Longer than any client keeps an idle connection (Go 90 s, httpx 5 s): where the server closes first, a call that sets
# out at that moment is lost, and uvicorn's 5 s met httpx's exactly.
KEEP_ALIVE_S = 120
BACKLOG = 512
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def serve(
    server: TunewrightServer, workspace: Workspace, *, host: str = "127.0.0.1", port: int = DEFAULT_PORT,
    allowed_hosts: Sequence[str] = (), allowed_origins: Sequence[str] = (), tls_cert: Path | None = None,
    tls_key: Path | None = None, insecure: bool = False,
) -> None:  # fmt: skip
    """Serves until SIGTERM or SIGINT; port 0 takes a free one. Tells on stderr how to connect.

    `allowed_hosts` are further names under which clients may ask, `allowed_origins` further sites whose pages may
    (`https://site.example`, exactly as browsers send it). Raises InvalidInput where the address or the certificate
    cannot be used, or where the token would cross the network in clear text and the caller did not say `insecure`: a
    warning in a service's log would be read by nobody. Raises Conflict where the port is taken.
    """
    _check_certificate(tls_cert, tls_key)
    family, address = _resolve(host, port)
    if not (address.is_loopback or tls_cert or insecure):
        raise InvalidInput(
            "plain_http_refused",
            f"On {host}, which others can reach, the token would cross the network in clear text.",
            allowed="Give a certificate, or stay on 127.0.0.1 and come through an SSH tunnel. Behind a proxy that "
            "does TLS, or inside a container, add --insecure.",
            next=f"tunewright serve --http --host {host} --tls-cert FILE --tls-key FILE",
            done="Nothing was started.",
        )
    token = ensure_token(workspace.home)
    listener = _listen(family, str(address), port)
    port = listener.getsockname()[1]
    access = Access(token, f"tunewright_{port}", is_tls=tls_cert is not None)
    places = allowed_places(address, host, allowed_hosts, allowed_origins, is_tls=access.is_tls)
    config = uvicorn.Config(
        application(server, access, places, allowed_origins=allowed_origins),
        ssl_certfile=tls_cert, ssl_keyfile=tls_key, timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S, loop="asyncio", ws="none",
        # The page's link bears a key: no line is written for a request.
        access_log=False, log_config=None, log_level=logging.WARNING, server_header=False, proxy_headers=False,
    )  # fmt: skip
    # Where everything is listened to, clients come under a name that was allowed.
    shown = "127.0.0.1" if address.is_unspecified and not allowed_hosts else (allowed_hosts or [host])[0]
    _announce(f"{'https' if access.is_tls else 'http'}://{_in_url(shown)}:{port}", access, token_path(workspace.home))
    logging.getLogger("uvicorn.error").addFilter(_is_no_cancellation)
    with suppress(KeyboardInterrupt):
        _Server(config).run(sockets=[listener])


def application(
    server: TunewrightServer, access: Access, places: TransportSecuritySettings, *, allowed_origins: Sequence[str] = (),
    session_idle_s: float = SESSION_IDLE_S,
) -> ASGIApp:  # fmt: skip
    """The server as an ASGI application: MCP at /mcp and the server's own routes, behind both checks."""
    app: ASGIApp = server.streamable_http_app(
        streamable_http_path=MCP_PATH, session_idle_timeout=session_idle_s, transport_security=places
    )
    app = TokenCheck(app, access)
    if allowed_origins:
        # Outside the check: a browser asks for leave before it sends the token.
        app = CORSMiddleware(
            app, allow_origins=allowed_origins, allow_methods=["GET", "POST", "DELETE"], allow_headers=["*"],
            expose_headers=["Mcp-Session-Id"],
        )  # fmt: skip
    return PlaceCheck(app, places)


def allowed_places(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, host: str, allowed_hosts: Sequence[str],
    allowed_origins: Sequence[str], *, is_tls: bool,
) -> TransportSecuritySettings:  # fmt: skip
    """The Host and Origin headers to accept. Any port: a tunnel's or a container's may be another than ours."""
    names = [] if address.is_unspecified else [_in_url(host)]
    if address.is_loopback or address.is_unspecified:
        names += [name for name in LOOPBACK if name not in names]
    hosts = [*names, *map(_in_url, allowed_hosts)]
    scheme = "https" if is_tls else "http"
    return TransportSecuritySettings(
        allowed_hosts=[form for name in hosts for form in (name, f"{name}:*")],
        allowed_origins=[
            *(form for name in names for form in (f"{scheme}://{name}", f"{scheme}://{name}:*")), *allowed_origins
        ],
    )  # fmt: skip


def _in_url(host: str) -> str:
    """An IPv6 address in brackets; everything else as it is."""
    with suppress(ValueError):
        if ipaddress.ip_address(host).version == 6:
            return f"[{host}]"
    return host


def _check_certificate(cert: Path | None, key: Path | None) -> None:
    if cert is None and key is None:
        return
    try:
        if cert is None:
            raise OSError("a key without its certificate")
        # An empty passphrase, or OpenSSL would ask for one on the terminal, which a service does not have.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except OSError as error:
        raise InvalidInput(
            "bad_certificate",
            f"TLS cannot use certificate {cert} with key {key}: {error}.",
            allowed="Both are PEM files that belong together, the key without a passphrase.",
            next="tunewright serve --http --tls-cert FILE --tls-key FILE",
            done="Nothing was started.",
        ) from error


def _resolve(host: str, port: int) -> tuple[int, ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """The family and address of `host`; of several the IPv4 one, which every client tries."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InvalidInput(
            "unknown_host",
            f"{host!r} is no address of this machine: {error}.",
            allowed="127.0.0.1 (this machine alone), 0.0.0.0 (everywhere), or a name or an address of this machine.",
            next="tunewright serve --http --host 127.0.0.1",
            done="Nothing was started.",
        ) from error
    family, *_, where = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return family, ipaddress.ip_address(where[0])


def _listen(family: int, address: str, port: int) -> socket.socket:
    # The protocol is named, which socket.create_server leaves out: asyncio sets TCP_NODELAY only on sockets that name
    # it, and without that an answer in two parts waits 40 ms for the client's acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # elsewhere it would let a second server take the same port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise Conflict(
                "port_taken",
                f"Port {port} of {address} is in use, perhaps by another Tunewright.",
                allowed="Connect to that one, or serve on another port; 0 takes any that is free.",
                next=f"tunewright serve --http --port {port + 1 if port < 65535 else 0}",
                done="Nothing was started.",
            ) from error
        raise Unavailable(
            "cannot_listen",
            f"{address} port {port} cannot be listened on: {error}.",
            allowed="An address of this machine and a port above 1023.",
            next=f"tunewright serve --http --port {DEFAULT_PORT}",
            done="Nothing was started.",
        ) from error
    return listener


def _announce(url: str, access: Access, token_file: Path) -> None:
    """Tells how to connect: on a terminal ready to paste; elsewhere, as into a service's log, without the secrets."""
    # The original stream: the server's own masks every secret, and a terminal is where this one is to be read.
    stream = sys.__stderr__ or sys.stderr
    if stream.isatty():
        entry = {"url": f"{url}{MCP_PATH}", "headers": {"Authorization": f"Bearer {access.token}"}}
        token, page = access.token, f"{url}/?token={access.page_key}"
        more = f"  other hosts   {json.dumps({'mcpServers': {'tunewright': {'type': 'http', **entry}}})}\n"
    else:
        token, page, more = f"$(cat '{token_file}')", f"{url}/?token=TOKEN", f"  the token     in {token_file}\n"
    stream.write(
        f"Tunewright serves {url}{MCP_PATH}. To connect:\n"
        f'  Claude Code   claude mcp add --transport http tunewright {url}{MCP_PATH} --header "Authorization: '
        f'Bearer {token}"\n{more}  jobs, live    {page}\n'
    )
    stream.flush()


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    """uvicorn logs each stream that it cuts off when it stops, as if that were a failure, with a long traceback."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


class _Server(uvicorn.Server):
    """uvicorn waits for whatever runs in a thread, a download of minutes too: this one leaves in time."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            # As if the signal had ended it: nothing is half-made, wherever it is cut off.
            last = threading.Timer(STOP_WITHIN_S, os._exit, args=(128 + sig,))
            last.daemon = True
            last.start()
        super().handle_exit(sig, frame)
