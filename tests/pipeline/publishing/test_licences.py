"""The base's licence: inherited as it is stated, and said where it restricts who publishes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tunewright.pipeline.publishing import card, hub, licences
from tunewright.pipeline.publishing.licences import Licence
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

Rewrite = Callable[..., Row]
REPO = "tester/tuny"
BASE = "meta-llama/Llama-3.2-1B-Instruct"


@pytest.fixture
def with_base_card(adapter: Row, rewrite: Rewrite, tmp_path: Path) -> Callable[[str], Row]:
    """The adapter over a base whose card begins with these lines."""

    def stated(front_matter: str) -> Row:
        (tmp_path / "README.md").write_text(f"---\n{front_matter}\n---\n# Base\n", encoding="utf-8")
        return rewrite(adapter, base_model=BASE, base_path=str(tmp_path))

    return stated


def test_a_card_that_cannot_be_read_states_no_licence_of_its_own(with_base_card: Callable[[str], Row]) -> None:
    adapter = with_base_card("license: [mit\n\t- x")
    found = licences.of_base(adapter)
    assert found is None or found.id == "llama3.2"


@pytest.mark.parametrize("id", ["apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc0-1.0"])
def test_a_free_licence_warns_of_nothing(id: str) -> None:
    assert (Licence(id).demand, Licence(id).credit) == (None, "")


@pytest.mark.parametrize(
    ("licence", "demanded"),
    [
        (Licence("llama2"), "acceptable use policy"),
        (Licence("llama3"), "Built with Meta Llama 3"),
        (Licence("llama3.1"), "Built with Llama"),
        (Licence("llama3.3"), "begin the model's name with"),
        (Licence("llama4"), "Built with Llama"),
        (Licence("gemma"), "prohibited use policy"),
        (Licence("cc-by-nc-4.0"), "no commercial use"),
        (Licence("cc-by-nc-sa-4.0"), "no commercial use"),
        (Licence("cc-by-nc-nd-4.0"), "may not be shared"),
        (Licence("openrail++"), "use restrictions"),
        (Licence("bigscience-openrail-m"), "use restrictions"),
        (Licence("intel-research"), "research or non-commercial"),
        (Licence("other", "qwen-research"), "research or non-commercial"),
        (Licence("other", "mrl"), "research or non-commercial"),
        (Licence("other", "Llama3.1"), "Built with Llama"),
        (Licence("other", "tongyi-qianwen"), "terms of its own"),
        (Licence("other"), "terms of its own"),
    ],
)
def test_a_restricting_licence_says_what_it_demands(licence: Licence, demanded: str) -> None:
    assert licence.demand is not None
    assert demanded in licence.demand


def test_the_notice_that_llama_demands_stands_in_the_card_with_its_version(
    workspace: Workspace, with_base_card: Callable[[str], Row]
) -> None:
    adapter = with_base_card("license: llama3.2")
    text = card.build(workspace, adapter, REPO)
    assert "Built with Llama. Llama 3.2 is licensed under the Llama 3.2 Community License, Copyright ©" in text
    assert f"[llama3.2](https://huggingface.co/{BASE})" in text
    assert any("Built with Llama" in warning for warning in hub.prepare(workspace, adapter["id"], REPO)["warnings"])


def test_a_licence_of_its_own_is_inherited_with_its_name_and_link(
    workspace: Workspace, with_base_card: Callable[[str], Row]
) -> None:
    adapter = with_base_card("license: other\nlicense_name: acme-research\nlicense_link: ./LICENSE.md")
    text = card.build(workspace, adapter, REPO)
    front = yaml.safe_load(text.split("---\n")[1])
    link = f"https://huggingface.co/{BASE}/blob/main/LICENSE.md"
    assert (front["license"], front["license_name"], front["license_link"]) == ("other", "acme-research", link)
    assert f"[acme-research]({link}). It restricts: it allows research" in text


def test_a_base_without_a_licence_is_warned_of(workspace: Workspace, adapter: Row, rewrite: Rewrite) -> None:
    unknown = rewrite(adapter, base_model="somebody/unlicensed", base_path=None)
    assert licences.of_base(unknown) is None
    (warning,) = licences.warnings(unknown)
    assert "unlicensed states no licence" in warning
    assert "The base model states none." in card.build(workspace, unknown, REPO)
