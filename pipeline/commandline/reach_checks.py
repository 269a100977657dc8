"""The doctor's look at what is reached from here: Ollama, the Hub, and the hosts that start this server."""

import os
from collections.abc import Iterator
from pathlib import Path

from tunewright.pipeline import environment
from tunewright.pipeline.commandline import hosts
from tunewright.pipeline.commandline.findings import Finding, failure, ok, warning
from tunewright.pipeline.errors import TunewrightError
from tunewright.pipeline.publishing import ollama_plan
from tunewright.pipeline.redact import without_login
from tunewright.pipeline.settings import hub_endpoint, ollama_host

HUB_TIMEOUT_S = 5.0
LOGIN = "hf auth login, or set HF_TOKEN where the host starts the server"


def ollama() -> Finding:
    """Whether a server answers, and is new enough for everything."""
    where = without_login(ollama_host())
    found = environment.ollama_server()[0]
    if found is None:
        return warning("ollama", f"no answer at {where}", "ollama serve, or let OLLAMA_HOST name another server.")
    if ollama_plan.before_jinja(found):
        since = ".".join(map(str, ollama_plan.JINJA_SINCE))
        return warning("ollama", f"{found} at {where} runs no chat template of a GGUF", f"Update Ollama to {since}.")
    return ok("ollama", f"{found} at {where}")


def hub() -> Finding:
    """Whether the Hub, or its mirror, answers, and takes the token where there is one."""
    import httpx
    from huggingface_hub import get_session, get_token
    from huggingface_hub.utils import build_hf_headers

    where = without_login(hub_endpoint())
    token = get_token()
    if os.environ.get("HF_HUB_OFFLINE"):
        return ok("hub", "not used: HF_HUB_OFFLINE is set")
    path = "/api/whoami-v2" if token else "/api/models?limit=1"
    try:
        # The Hub's own client, so that its proxy and certificates are those of the real work.
        answer = get_session().get(
            hub_endpoint() + path, headers=build_hf_headers(token=token or False), timeout=HUB_TIMEOUT_S
        )
    except httpx.HTTPError as error:
        return warning(
            "hub", f"{where} does not answer ({type(error).__name__}); what is cached or local works",
            "Look at the network, or let HF_ENDPOINT name a mirror.",
        )  # fmt: skip
    if token and answer.status_code == 401:
        return failure("hub", f"{where} refuses the token", LOGIN)
    if not answer.is_success:
        return warning("hub", f"{where} answers with status {answer.status_code}", "Try again later.")
    if not token:
        return warning("hub", f"{where} answers; there is no token, so nothing can be published there", LOGIN)
    return ok("hub", f"{where} knows the token, of {answer.json().get('name')}")


def connections() -> Iterator[Finding]:
    """Every host's file that is here: whether it names this server, and a program that exists."""
    here, known = Path.cwd(), hosts.HOSTS.values()
    # In the home folder the project's file of a host may be the user's.
    places = {hosts.config_file(host, scope, folder=here): host for host in known for scope in host.scopes}
    found = [finding for file, host in places.items() if (finding := _connection(host, file))]
    if not found:
        yield warning("hosts", "no host has an entry for tunewright", f"tunewright install {' | '.join(hosts.HOSTS)}")
    yield from found


def _connection(host: hosts.Host, file: Path) -> Finding | None:
    """None where the host is not here, or has no entry."""
    name = f"host {host.name}"
    try:
        _, entry = hosts.read(host, file)
    except TunewrightError as error:
        return warning(name, error.what, error.allowed)
    if entry is None:
        return None
    if missing := hosts.missing_program(entry):
        mend = f"tunewright install {host.name} --force"
        return failure(name, f"{file} names {missing}, which is no program here", mend)
    return ok(name, f"{entry.get('command') or entry.get('url')} in {file}")
