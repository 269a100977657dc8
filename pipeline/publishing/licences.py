"""The base's licence as the published model inherits it, and what a restricting one demands of who publishes.

Guarantees that only what the base states is stated: nothing is guessed. Names the usual duties; is no legal advice.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.pipeline import catalog
from tunewright.pipeline.publishing.lineage import hub_id
from tunewright.pipeline.store import Row


@dataclass(frozen=True)
class Terms:
    """What licences demand whose id or name `pattern` matches; `credit` is the notice that they want to be shown."""

    pattern: str
    demand: str
    credit: str = ""


LLAMA_DUTIES = (
    "pass on a copy of the licence and its notice, and keep the acceptable use policy; above 700 million users ask Meta"
)
LLAMA_NOTICE = "is licensed under the {name} Community License, Copyright © Meta Platforms, Inc. All Rights Reserved."
# By the Hub's licence identifiers (https://huggingface.co/docs/hub/repositories-licenses) and, for `other`, by the
# names that models give theirs. Sources: the Llama community licences, section 1.b; the Gemma Terms of Use, section
# 3.1; the Creative Commons deeds; BigScience's OpenRAIL-M, section III.
RESTRICTING = (
    Terms(
        r"llama3$",
        f'show "Built with Meta Llama 3", begin the model\'s name with "Llama 3", {LLAMA_DUTIES}.',
        f"Built with Meta Llama 3. Meta Llama 3 {LLAMA_NOTICE.format(name='Meta Llama 3')}",
    ),
    Terms(
        r"llama(?P<version>3\.\d|4)",
        f'show "Built with Llama", begin the model\'s name with "Llama", {LLAMA_DUTIES}.',
        f"Built with Llama. Llama {{version}} {LLAMA_NOTICE.format(name='Llama {version}')}",
    ),
    Terms(
        r"llama2",
        f"do not improve other language models with it, {LLAMA_DUTIES}.",
        f"Llama 2 {LLAMA_NOTICE.format(name='LLAMA 2')}",
    ),
    Terms(
        r"gemma",
        "pass on a copy of the terms with their use restrictions, say that the files were modified, and keep the "
        "prohibited use policy.",
        "Modified by fine-tuning. Gemma is provided under and subject to the Gemma Terms of Use found at "
        "ai.google.dev/gemma/terms.",
    ),
    Terms(r"cc-by-nc(-\w+)?-nd|cc-by-nd", "a fine-tuned model is a derivative, and derivatives may not be shared."),
    Terms(r"cc-by-nc", "no commercial use; name the author and say what was changed; with -sa, the same licence."),
    Terms(
        r".*(non-?commercial|research|academic|apple-amlr|\bmrl\b|-nc\b)",
        "it allows research or non-commercial use only: read it before anybody else gets the model, and pass it on.",
    ),
    Terms(r".*(openrail|\brail\b)", "its use restrictions bind every later user, so they must be passed on."),
    Terms(r"other$", "it has terms of its own: read them before anybody else gets the model, and pass them on."),
)


@dataclass(frozen=True)
class Licence:
    """`id` as the Hub knows it; `name` and `link` where the base gives them, as it must for the id `other`."""

    id: str
    name: str | None = None
    link: str | None = None

    @property
    def title(self) -> str:
        return self.name or self.id

    @property
    def demand(self) -> str | None:
        """What it demands of who publishes, where it restricts; None where it is one of the free ones."""
        found = self._terms()
        return found[0].demand if found else None

    @property
    def credit(self) -> str:
        """The notice that it wants to be shown, if any."""
        found = self._terms()
        return found[0].credit.format(**found[1].groupdict()) if found else ""

    def _terms(self) -> tuple[Terms, re.Match[str]] | None:
        # The name first: it says more than the id `other`.
        for text in (self.name, self.id):
            for terms in RESTRICTING:
                if text and (match := re.match(terms.pattern, text.lower())):
                    return terms, match
        return None


def of_base(adapter: Row) -> Licence | None:
    """The licence of the adapter's base as its own card states it, else as the catalogue of known models does."""
    from huggingface_hub.repocard import metadata_load
    from yaml import YAMLError  # what metadata_load reads with

    document = adapter["document"]
    readme = Path(document["base_path"]) / "README.md" if document.get("base_path") else None
    if readme is not None and readme.is_file():
        try:
            stated = metadata_load(readme) or {}
        except (ValueError, RecursionError, YAMLError):
            # Whatever stands there, it does not state a licence.
            stated = {}
        if isinstance(stated.get("license"), str):
            return Licence(stated["license"], _text(stated.get("license_name")), _link(document, stated))
    known = (Licence(model.licence) for model in catalog.KNOWN_MODELS if model.hub_id == document["base_model"])
    return next(known, None)


def warnings(adapter: Row) -> list[str]:
    """What is to be minded before a model of this adapter's base is published; none where its licence is free."""
    licence, base = of_base(adapter), Path(adapter["document"]["base_model"]).name
    if licence is None:
        return [f"{base} states no licence: without one its owner has allowed nobody to publish changed copies of it."]
    return [f"The licence of {base} ({licence.title}) restricts: {licence.demand}"] if licence.demand else []


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _link(document: dict[str, Any], stated: dict[str, Any]) -> str | None:
    """The link as stated; a file beside the base's card becomes its address on the Hub."""
    link = _text(stated.get("license_link"))
    if link is None or link.startswith(("https://", "http://")):
        return link
    base = hub_id(document["base_model"])
    return f"https://huggingface.co/{base}/blob/main/{link.removeprefix('./')}" if base else None
