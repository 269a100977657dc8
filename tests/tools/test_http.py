"""Streamable HTTP: real processes, the SDK's own client in both eras, who is let in, and how it ends."""

import os
import pty
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal

import anyio
import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from mcp import Client, MCPError
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from standins.http_process import COMMAND, TIMEOUT_S, HttpProcess, connected, serving_http

from tunewright.pipeline import jobs
from tunewright.pipeline.errors import Conflict, InvalidInput, Unavailable
from tunewright.pipeline.settings import Home
from tunewright.pipeline.workspace import Workspace
from tunewright.server import build_server
from tunewright.tools import http
from tunewright.tools.http_access import Access, ensure_token

Era = Literal["auto", "legacy"]
STOP_S = 3
# An initialize request, as any client would send it first.
HELLO: dict[str, Any] = {
    "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "0"}},
}  # fmt: skip
MCP_HEADERS = {"Accept": "application/json, text/event-stream"}
# A tool that works in a thread for as long as anybody may wait.
BUSY = """
import threading
from pathlib import Path
from tunewright.pipeline import artifacts
from tunewright.server import main

def page(*_):
    Path("is-busy").touch()
    threading.Event().wait(600)

artifacts.page = page
main()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpProcess]:
    """One process for every test that changes nothing in it."""
    with serving_http(tmp_path_factory.mktemp("http") / "home") as running:
        yield running


def hello(url: str, headers: dict[str, str], verify: ssl.SSLContext | bool = True) -> httpx2.Response:
    return httpx2.post(f"{url}/mcp", json=HELLO, headers={**MCP_HEADERS, **headers}, timeout=TIMEOUT_S, verify=verify)


@pytest.mark.anyio
@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_a_client_of_either_era_lists_calls_and_reads(server: HttpProcess, era: Era) -> None:
    async with connected(server.url, server.bearer, era) as client:
        assert (client.session.protocol_version == "2026-07-28") == (era == "auto")
        tools = {tool.name for tool in (await client.list_tools()).tools}
        assert {"start_finetune", "get_status"} <= tools
        status = await client.call_tool("get_status", {})
        assert not status.is_error
        assert status.structured_content is not None and status.structured_content["jobs"] == []
        refused = await client.call_tool("get_status", {"job": "x"})
        assert refused.is_error
        assert (await client.read_resource("tw://jobs")).contents[0].text == "[]"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer wrong", "Bearer {token}x", "Bearer {half}", "Basic {token}", "{token}",
     "Bearer é"],
)  # fmt: skip
def test_without_the_token_nothing_is_done(server: HttpProcess, authorization: str | None) -> None:
    token = server.token
    headers: dict[str, Any] = {}
    if authorization is not None:
        headers["Authorization"] = authorization.format(token=token, half=token[:20]).encode("latin-1")
    refused = hello(server.url, headers)
    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"].startswith("Bearer")
    assert refused.text.startswith("unauthorized: ")
    assert "Mcp-Session-Id" not in refused.headers
    assert token not in refused.text
    assert httpx2.get(server.url, headers=headers).status_code == 401


def test_the_token_in_an_address_or_a_cookie_opens_no_tool(server: HttpProcess) -> None:
    key = Access(server.token, "", is_tls=False).page_key
    port = server.url.rpartition(":")[2]
    for secret in (server.token, key):
        assert httpx2.post(f"{server.url}/mcp?token={secret}", json=HELLO, headers=MCP_HEADERS).status_code == 401
        assert hello(server.url, {"Cookie": f"tunewright_{port}={secret}"}).status_code == 401
        assert httpx2.get(f"{server.url}/mcp?token={secret}", headers=MCP_HEADERS).status_code == 401
    assert hello(server.url, {"Authorization": f"Bearer {key}"}).status_code == 401


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "192.168.0.7"])
def test_another_host_name_is_refused_even_with_the_token(server: HttpProcess, host: str) -> None:
    for path in ("/mcp", "/"):
        refused = httpx2.get(f"{server.url}{path}", headers={**server.bearer, "Host": host})
        assert refused.status_code == 421
        assert refused.text.startswith("host_not_allowed: ") and "--allow-host" in refused.text
    assert hello(server.url, {**server.bearer, "Host": "localhost:9000"}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example"])
def test_another_sites_page_is_refused_even_with_the_token(server: HttpProcess, origin: str) -> None:
    refused = hello(server.url, {**server.bearer, "Origin": origin})
    assert refused.status_code == 403
    assert refused.text.startswith("origin_not_allowed: ") and "--allow-origin" in refused.text
    assert hello(server.url, {**server.bearer, "Origin": server.url}).status_code == 200


def test_bound_everywhere_only_named_hosts_and_origins_are_let_in(tmp_path: Path) -> None:
    site = "https://agent.example"
    options = ("--host", "0.0.0.0", "--insecure", "--allow-host", "gpu.example", "--allow-origin", site)
    with serving_http(tmp_path / "home", *options) as server:
        port = server.url.rpartition(":")[2]
        assert server.url == f"http://gpu.example:{port}"
        url = f"http://127.0.0.1:{port}"
        for name, status in (
            ("gpu.example", 200),
            (f"gpu.example:{port}", 200),
            ("0.0.0.0", 421),
            ("evil.example", 421),
        ):
            assert hello(url, {**server.bearer, "Host": name}).status_code == status
        assert hello(url, {**server.bearer, "Origin": "https://evil.example"}).status_code == 403
        allowed = hello(url, {**server.bearer, "Origin": site})
        assert allowed.status_code == 200
        assert allowed.headers["Access-Control-Allow-Origin"] == site
        assert "Mcp-Session-Id" in allowed.headers["Access-Control-Expose-Headers"]
        # A browser asks first, without the token, and is told no more than that it may.
        asks = {
            "Origin": site,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization",
        }
        told = httpx2.options(f"{url}/mcp", headers=asks)
        assert told.status_code == 200
        assert "authorization" in told.headers["Access-Control-Allow-Headers"]
        assert httpx2.options(f"{url}/mcp", headers={**asks, "Origin": "https://evil.example"}).status_code == 403


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_plain_address_that_others_reach_is_refused(workspace: Workspace, host: str) -> None:
    with pytest.raises(InvalidInput, match=r"^plain_http_refused: .*--tls-cert.*Nothing was started\."):
        http.serve(build_server(workspace), workspace, host=host, port=0)
    assert not (workspace.home.root / "http-token").exists()


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that signs itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    _write_key(folder / "key.pem", key, serialization.NoEncryption())
    _write_key(folder / "locked.pem", key, serialization.BestAvailableEncryption(b"secret"))
    _write_key(folder / "other.pem", ec.generate_private_key(ec.SECP256R1()), serialization.NoEncryption())
    return folder / "cert.pem", folder / "key.pem"


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey, lock: serialization.KeySerializationEncryption) -> None:
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock))


@pytest.mark.anyio
async def test_with_a_certificate_it_speaks_tls_alone(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    options = ("--tls-cert", str(cert), "--tls-key", str(key), "--host", "localhost")
    with serving_http(tmp_path / "home", *options) as server:
        assert server.url.startswith("https://localhost:")
        trusted = ssl.create_default_context(cafile=str(cert))
        async with connected(server.url, server.bearer, tls=trusted) as client:
            assert not (await client.call_tool("get_status", {})).is_error
        signed_in = httpx2.get(f"{server.url}/?token={server.token}", verify=trusted)
        assert "Secure" in signed_in.headers["Set-Cookie"]
        with pytest.raises(httpx2.TransportError):
            hello(server.url.replace("https", "http"), server.bearer)


@pytest.mark.parametrize(
    ("cert", "key"),
    [("cert.pem", "locked.pem"), ("cert.pem", "other.pem"), ("cert.pem", None), ("none.pem", "key.pem"),
     (None, "key.pem")],
)  # fmt: skip
def test_a_certificate_that_cannot_be_used_is_refused_unasked(
    workspace: Workspace, certificate: tuple[Path, Path], cert: str | None, key: str | None
) -> None:
    folder = certificate[0].parent
    with pytest.raises(InvalidInput, match=r"^bad_certificate: .*Nothing was started\."):
        http.serve(
            build_server(workspace), workspace, port=0, tls_cert=folder / cert if cert else None,
            tls_key=folder / key if key else None,
        )  # fmt: skip


# The token


def test_the_token_is_the_owners_alone_and_stays_the_same(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "home")
    with ThreadPoolExecutor(8) as pool:
        (token,) = set(pool.map(lambda _: ensure_token(home), range(16)))
    path = home.root / "http-token"
    assert len(token) >= 43
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    assert ensure_token(home) == token
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert ensure_token(Home.open(tmp_path / "another")) != token
    assert [entry.name for entry in home.root.glob("*partial*")] == []


@pytest.mark.parametrize("content", ["", "short", "two words " * 8, "é" * 40])
def test_a_file_that_holds_no_token_is_not_taken_for_one(tmp_path: Path, content: str) -> None:
    home = Home.open(tmp_path / "home")
    (home.root / "http-token").write_text(content, encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"^bad_token_file: "):
        ensure_token(home)


def test_no_log_holds_the_token(server: HttpProcess) -> None:
    key = Access(server.token, "", is_tls=False).page_key
    hello(server.url, server.bearer)
    for secret in (server.token, key):
        assert httpx2.get(f"{server.url}/?token={secret}").status_code == 200
        httpx2.get(f"{server.url}/?token={secret}", headers={"Host": "evil.example"})
        httpx2.get(f"{server.url}/nowhere?token={secret}", headers=server.bearer)
    told = server.stderr.read_text(encoding="utf-8")
    assert "http-token" in told
    assert server.token not in told and key not in told


def test_on_a_terminal_it_shows_what_to_paste(tmp_path: Path) -> None:
    terminal, stderr = pty.openpty()
    arguments = ["--home", str(tmp_path / "home"), "serve", "--http", "--port", "0"]
    with subprocess.Popen([*COMMAND, *arguments], stdin=subprocess.DEVNULL, stderr=stderr) as process:
        os.close(stderr)
        told = ""
        while "?token=" not in told:
            told += os.read(terminal, 4096).decode()
        process.terminate()
    os.close(terminal)
    token = ensure_token(Home.open(tmp_path / "home"))
    assert f'--header "Authorization: Bearer {token}"' in told
    assert f'"Authorization": "Bearer {token}"' in told
    assert f"?token={Access(token, '', is_tls=False).page_key}" in told
    assert token not in told.split("?token=")[1]


# Where it cannot listen


def test_a_taken_port_is_an_error_that_names_another(server: HttpProcess, workspace: Workspace) -> None:
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(Conflict, match=rf"^port_taken: Port {port} .*--port {port + 1}\. Nothing was started\."):
        http.serve(build_server(workspace), workspace, port=port)


@pytest.mark.parametrize(
    ("host", "error", "code"),
    [("no.such.host.invalid", InvalidInput, "unknown_host"), ("192.0.2.1", Unavailable, "cannot_listen")],
)  # fmt: skip
def test_an_address_of_another_machine_is_an_error(
    workspace: Workspace, host: str, error: type[Exception], code: str
) -> None:
    with pytest.raises(error, match=f"^{code}: .*Nothing was started"):
        http.serve(build_server(workspace), workspace, host=host, port=0, insecure=True)


def test_an_answer_in_two_parts_does_not_wait_for_an_acknowledgement() -> None:
    # asyncio turns Nagle's algorithm off for sockets that name TCP alone; it costs 40 ms a call.
    listener = http._listen(socket.AF_INET, "127.0.0.1", 0)  # pyright: ignore[reportPrivateUsage]
    with listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.proto == socket.IPPROTO_TCP


# Silence


@dataclass
class Session:
    """A session of the handshake era in a server of its own, without a process."""

    client: httpx2.AsyncClient
    manager: StreamableHTTPSessionManager
    headers: dict[str, str]

    @classmethod
    async def opened(cls, stack: AsyncExitStack, home: Path, **idle: float) -> "Session":
        workspace = Workspace.open(home)
        stack.callback(workspace.store.close)
        server, access = build_server(workspace), Access("t" * 40, "c", is_tls=False)
        places = http.allowed_places(ip_address("127.0.0.1"), "127.0.0.1", [], [], is_tls=False)
        transport = httpx2.ASGITransport(http.application(server, access, places, **idle))
        await stack.enter_async_context(server.session_manager.run())
        headers = {**MCP_HEADERS, "Authorization": f"Bearer {access.token}"}
        client = httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers)
        await stack.enter_async_context(client)
        session_id = (await client.post("/mcp", json=HELLO)).headers["Mcp-Session-Id"]
        session = cls(client, server.session_manager, {"Mcp-Session-Id": session_id})
        assert (await session.post("notifications/initialized")).status_code == 202
        return session

    async def post(self, method: str, **more: Any) -> httpx2.Response:
        headers = {**self.headers, "Mcp-Protocol-Version": "2025-11-25"}
        return await self.client.post("/mcp", json={"jsonrpc": "2.0", "method": method, **more}, headers=headers)


@pytest.mark.anyio
async def test_a_session_is_used_again_after_a_silence_that_ends_a_briefer_one(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        usual = await Session.opened(stack, tmp_path / "usual")
        brief = await Session.opened(stack, tmp_path / "brief", session_idle_s=0.1)
        with anyio.fail_after(TIMEOUT_S):
            # Not by asking it, which would be no silence.
            while brief.manager._server_instances:  # pyright: ignore[reportPrivateUsage]
                await anyio.sleep(0.01)
        assert (await brief.post("tools/list", id=2)).status_code == 404
        assert (await usual.post("tools/list", id=2)).status_code == 200
        assert (usual.manager.session_idle_timeout or 0) >= timedelta(days=1).total_seconds()


# The end


@pytest.mark.anyio
@pytest.mark.usefixtures("held_device")
async def test_sigterm_ends_it_in_time_amid_open_streams_and_the_job_goes_on(
    workspace: Workspace, dataset_id: str, eventually: Callable[..., None]
) -> None:
    heard = anyio.Event()

    async def on_progress(*_: Any) -> None:
        heard.set()

    async def wait_for_job(client: Client, job_id: str) -> None:
        with pytest.raises(MCPError):
            await client.call_tool("get_status", {"job_id": job_id, "wait_s": 50}, progress_callback=on_progress)

    with serving_http(workspace.home.root) as server:
        async with (
            connected(server.url, server.bearer) as newest,
            connected(server.url, server.bearer, "legacy") as legacy,
        ):
            started = await newest.call_tool("start_finetune", {"dataset_id": dataset_id, "model": "toy"})
            assert started.structured_content is not None
            job_id = started.structured_content["job_id"]
            async with newest.listen(resource_subscriptions=["tw://jobs"]), anyio.create_task_group() as tasks:
                tasks.start_soon(wait_for_job, legacy, job_id)
                # A word of the worker, which the call that waits passes on.
                workspace.store.execute("UPDATE jobs SET progress='{\"at\": 1}' WHERE id=?", job_id)
                with anyio.fail_after(TIMEOUT_S):
                    await heard.wait()
                assert await anyio.to_thread.run_sync(seconds_to_end, server) < STOP_S
        assert jobs.is_worker_alive(workspace.store.job(job_id))
        jobs.cancel(workspace, job_id)
        eventually(lambda: workspace.store.job(job_id)["state"] == "cancelled")
        assert "Traceback" not in server.stderr.read_text(encoding="utf-8")


def test_sigterm_ends_it_in_time_amid_a_call_that_cannot_be_cut_off(
    tmp_path: Path, eventually: Callable[..., None]
) -> None:
    (tmp_path / "busy.py").write_text(BUSY, encoding="utf-8")
    with serving_http(tmp_path / "home", command=[sys.executable, "-P", str(tmp_path / "busy.py")]) as server:
        call = {
            "jsonrpc": "2.0",
            "id": 2,
            "method": "tools/call",
            "params": {"name": "list_artifacts", "arguments": {}},
        }
        session = {"Mcp-Session-Id": hello(server.url, server.bearer).headers["Mcp-Session-Id"]}
        headers = {**MCP_HEADERS, **server.bearer, **session}
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(httpx2.post, f"{server.url}/mcp", json=call, headers=headers, timeout=TIMEOUT_S)
            eventually((tmp_path / "is-busy").exists)
            # The second is what an impatient person sends.
            assert seconds_to_end(server, signals=2) < STOP_S
            # The status and the beginning of a stream may have come before the end.
            assert answer.exception() or "result" not in answer.result().text


def seconds_to_end(server: HttpProcess, signals: int = 1) -> float:
    began = time.monotonic()
    for _ in range(signals):
        server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(TIMEOUT_S) in (-signal.SIGTERM, 128 + signal.SIGTERM)
    return time.monotonic() - began
