"""What leaves this machine as text is made fit to be read by anybody: no local paths, no credentials.

Works on JSON values, by what they look like. Does not look for personal data, and not into weights or vocabularies.
"""

import os
import re
from pathlib import Path
from typing import Any, cast

from tunewright.pipeline.workspace import Workspace

# The Hub's and the common providers' tokens, by their fixed beginnings.
# A Hub login by browser gives a JSON web token behind the prefix, in three parts with dots between.
TOKEN = re.compile(r"\b(?:hf_|api_org_|sk-|ghp_|github_pat_)[A-Za-z0-9_-]{16,}(?:\.[A-Za-z0-9_-]{8,})*")
# An absolute path of two or more parts inside a text; not a URL's, whose slashes follow a colon, a slash or a name.
PATH = re.compile(
    r"(?<![\w:/.~])(?:~|/)(?:[\w.+@-]+/)+(?P<last>[\w.+@-]*)|\b[A-Za-z]:\\(?:[^\\\s]+\\)*(?P<windows>[^\\\s]*)"
)
# A user and a password in front of a host; the last @ ends them, whatever characters the password has.
LOGIN = re.compile(r"//[^/]*@")
SECRET_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OLLAMA_API_KEY")


def without_login(url: str) -> str:
    """A URL as it may be shown: without a user and a password."""
    return LOGIN.sub("//", url)


def public_text(workspace: Workspace, text: str) -> str:
    """`text` with tokens blanked and every absolute path cut down to its last part."""
    for name in SECRET_VARIABLES:
        if secret := os.environ.get(name, "").strip():
            text = text.replace(secret, "[removed]")
    text = TOKEN.sub("[removed]", text)
    if text.startswith(("/", "~/")) and "\n" not in text:
        return Path(text).name
    for root in (workspace.home.root, Path.home()):
        text = re.sub(rf"{re.escape(str(root))}(?![\w-])/?", "", text) if len(root.parts) > 1 else text
    return PATH.sub(lambda match: match["last"] or match["windows"] or "", text)


def public(workspace: Workspace, value: Any) -> Any:
    """A JSON value with `public_text` applied to every text in it; keys stay as they are."""
    if isinstance(value, str):
        return public_text(workspace, value)
    if isinstance(value, dict):
        return {key: public(workspace, item) for key, item in cast(dict[str, Any], value).items()}
    if isinstance(value, list):
        return [public(workspace, item) for item in cast(list[Any], value)]
    return value
