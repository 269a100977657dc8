"""The whole chain over stdio with a real client, real training and a real llama.cpp; services are stand-ins.

One file, as xdist runs a file in one process: in another the adapter and its export would be made once more.
"""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ollama
import pytest
from chain.conftest import ANSWERS, STEPS, Chain
from standins.hub_server import HubStandIn
from standins.ollama_server import OllamaStandIn

from tunewright.examples.session import ToolFailed, call, connect, follow
from tunewright.pipeline.exporting.outputs import OUTPUTS, is_gguf
from tunewright.pipeline.exporting.parity.cases import ANSWER_TOKENS
from tunewright.pipeline.exporting.runtime import LlamaRuntime
from tunewright.pipeline.publishing import card
from tunewright.pipeline.settings import ollama_host
from tunewright.pipeline.workspace import Workspace

pytestmark = pytest.mark.anyio

SUBJECT = "computer_network"
LETTERS = "ABCD"


def test_every_step_has_one_metric_and_the_loss_falls(chain: Chain) -> None:
    store = Workspace.open(chain.home).store
    rows = store.metrics(chain.answers["started"]["job_id"], "train")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    first, last = rows[0]["numbers"], rows[-1]["numbers"]
    assert last["loss"] < first["loss"] / 4
    assert all(row["numbers"]["grad_norm"] > 0 for row in rows)
    assert last["tokens_per_s"] > 0
    evaluations = store.metrics(chain.answers["started"]["job_id"], "eval")
    assert [row["step"] for row in evaluations] == [20, 40, 60]


def test_the_adapter_says_where_it_comes_from(chain: Chain) -> None:
    folder = Path(chain.home) / "adapters" / chain.answers["training"]["result"]["adapter_id"]
    provenance = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    dataset = Workspace.open(chain.home).store.artifact(chain.answers["dataset"]["dataset_id"])
    assert provenance["dataset"]["sha256"] == dataset["document"]["sha256"]
    assert provenance["arguments"]["learning_rate"] == 3e-3
    assert provenance["enable_thinking"] is False
    assert {"unsloth", "torch", "trl"} <= provenance["versions"].keys()
    assert {"adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"} <= {f.name for f in folder.iterdir()}


async def test_the_tuned_model_knows_what_the_base_does_not(chain: Chain) -> None:
    adapter_id = chain.answers["training"]["result"]["adapter_id"]
    said: list[str] = []
    async with connect(chain.home) as client:
        for question, answer in ANSWERS.items():
            reply = await call(
                client, "chat_with_adapter", said.append, adapter_id=adapter_id, prompt=question,
                compare_with_base=True, temperature=0,
            )  # fmt: skip
            assert reply["tuned"]["text"] == answer
            assert reply["tuned"]["stopped"]
            assert reply["base"]["text"] != answer
            assert reply["base"]["text"], "the base must answer too"
    assert said, "progress must be told while the model is loaded"


async def test_a_base_model_chats_alone_and_sampling_defaults_are_qwen3s(chain: Chain) -> None:
    async with connect(chain.home) as client:
        reply = await call(client, "chat_with_adapter", model="toy", prompt="What is the capital of France?", seed=1)
        again = await call(client, "chat_with_adapter", model="toy", prompt="What is the capital of France?", seed=1)
        thinking = await call(client, "chat_with_adapter", model="toy", prompt="Hello", thinking=True, max_new_tokens=8)
    assert reply["sampling"] == {"temperature": 0.7, "top_p": 0.8, "top_k": 20}
    assert thinking["sampling"] == {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
    assert reply["base"]["text"] == again["base"]["text"], "the same seed gives the same answer"
    assert reply["tuned"] is None
    assert "<|" not in reply["base"]["text"] + thinking["base"]["text"]


async def test_a_prompt_longer_than_the_model_reads_is_refused_at_once(chain: Chain) -> None:
    async with connect(chain.home) as client:
        with pytest.raises(ToolFailed, match=r"prompt_too_long: The prompt has \d+ tokens; .* 2048 that toy reads"):
            await call(client, "chat_with_adapter", model="toy", prompt="w " * 90_000)


async def test_a_queued_job_makes_the_chat_host_leave(chain: Chain) -> None:
    adapter_id = chain.answers["training"]["result"]["adapter_id"]
    async with connect(chain.home) as client:
        await call(client, "chat_with_adapter", adapter_id=adapter_id, prompt="Hello", max_new_tokens=4)
        exporting = await call(client, "merge_and_export", adapter_id=adapter_id, outputs=["lora"])
        assert (await follow(client, exporting["job_id"]))["state"] == "succeeded"


def test_every_output_is_made_and_holds_its_parity(chain: Chain) -> None:
    export = chain.answers["export"]
    assert [file["output"] for file in export["files"]] == list(OUTPUTS)
    parity = export["parity"]
    assert parity["passed"], parity["failures"]
    measured = parity["outputs"]
    assert set(measured) == {output for output in OUTPUTS if is_gguf(output)}
    assert parity["recommendation"]["output"] in measured
    assert "merged_4bit was not measured, only the 16 bits that it is made of" in parity["notes"]
    assert measured["gguf:f16"]["kl"] < measured["gguf:q8_0"]["kl"] < measured["gguf:q3_k_m"]["kl"]
    bytes_of = {file["output"]: file["bytes"] for file in export["files"]}
    sizes = [bytes_of[f"gguf:{kind}"] for kind in ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m")]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)


@pytest.mark.parametrize("output", ["gguf:f16", "gguf:bf16", "gguf:q8_0", "gguf:q4_k_m"])
def test_every_gguf_answers_in_llama_cpp_as_the_adapter_does(chain: Chain, output: str, tmp_path: Path) -> None:
    files = {file["output"]: Path(file["path"]) for file in chain.answers["export"]["files"]}
    with LlamaRuntime(files[output], log=tmp_path / "llama.log") as runtime:
        for question, answer in ANSWERS.items():
            reply = runtime.chat([{"role": "user", "content": question}], max_tokens=64)
            assert (reply["text"].strip(), reply["finish_reason"]) == (answer, "stop")


async def test_the_export_is_published_to_ollama_with_the_bytes_that_were_made(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = chain.answers["export"]
    with OllamaStandIn() as ollama:
        monkeypatch.setenv("OLLAMA_HOST", ollama.url)
        async with connect(chain.home) as client:
            published = await call(
                client,
                "publish_to_ollama",
                export_id=export["export_id"],
                model_name="shop",
                output="gguf:q8_0",
                system="You are the shop.",
            )
            with pytest.raises(ToolFailed, match="model_exists"):
                await call(client, "publish_to_ollama", export_id=export["export_id"], model_name="shop")
    assert published["state"] == "succeeded"
    digest = next(file["sha256"] for file in export["files"] if file["output"] == "gguf:q8_0")
    assert published["publication"]["digest"] == f"sha256:{digest}"


@pytest.mark.usefixtures("real_ollama")
async def test_a_real_ollama_answers_greedily_as_the_trained_model_does(chain: Chain) -> None:
    name = "tunewright-test-shop"
    parity = json.loads(
        (Path(chain.home, "exports", chain.answers["export"]["export_id"], "parity.json")).read_text("utf-8")
    )
    expected = list(zip(parity["cases"]["asked"], parity["reference"]["answers"], strict=True))
    assert len(expected) == 10
    async with connect(chain.home) as client:
        published = await call(
            client, "publish_to_ollama", export_id=chain.answers["export"]["export_id"], model_name=name,
            output="gguf:f16", parameters={"temperature": 0, "num_predict": ANSWER_TOKENS}, overwrite=True,
        )  # fmt: skip
    assert published["state"] == "succeeded", published
    server = ollama.Client(ollama_host())
    try:
        for messages, answer in expected:
            for think in (None, False):
                said = server.chat(name, messages, think=think)
                assert (said.message.content or "").strip() == answer.strip()
    finally:
        server.delete(name)


async def test_the_adapter_is_published_to_the_hub_private_and_with_a_card(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter_id = chain.answers["training"]["result"]["adapter_id"]
    with HubStandIn(token="hf_test_token") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", "hf_test_token")
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        async with connect(chain.home) as client:
            published = await call(client, "publish_to_hub", artifact_id=adapter_id, repo_id="me/shop", confirm=True)
    assert published["state"] == "succeeded", published
    assert published["publication"]["private"] is True
    assert {"README.md", "adapter_model.safetensors"} <= {f["path"] for f in published["publication"]["files"]}
    assert "hf_test_token" not in json.dumps(published)


async def test_what_an_export_needs_cannot_be_deleted(chain: Chain) -> None:
    async with connect(chain.home) as client:
        with pytest.raises(ToolFailed, match="still_needed"):
            await call(client, "delete_artifact", artifact_id=chain.answers["dataset"]["dataset_id"], confirm=True)


async def test_training_goes_on_from_an_adapter(chain: Chain) -> None:
    adapter_id = chain.answers["training"]["result"]["adapter_id"]
    async with connect(chain.home) as client:
        started = await call(
            client, "start_finetune", dataset_id=chain.answers["dataset"]["dataset_id"], model="toy",
            continue_from=adapter_id, max_steps=2,
        )  # fmt: skip
        status = await follow(client, started["job_id"])
    ended = chain.answers["training"]["result"]["train_loss_last"]
    assert status["result"]["train_loss_first"] < 4 * ended + 0.5, "it must begin where the adapter ended"


def write_exam(folder: Path, questions: int = 12) -> Path:
    """C-Eval's own layout: five examples in dev/, questions in val/."""
    for split, count in (("dev", 5), ("val", questions)):
        (folder / split).mkdir(parents=True)
        with (folder / split / f"{SUBJECT}_{split}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "question", *LETTERS, "answer", *(["explanation"] if split == "dev" else [])])
            for i in range(count):
                row = [i, f"What is {i} plus {i}?", 2 * i, 2 * i + 1, 2 * i + 2, 2 * i + 3, LETTERS[i % 4]]
                writer.writerow([*row, *(["Because."] if split == "dev" else [])])
    return folder


async def test_a_tuned_model_is_shown_to_be_better_judged_and_reported(
    chain: Chain, eventually: Callable[..., None]
) -> None:
    adapter_id = chain.answers["training"]["result"]["adapter_id"]
    dataset_id = chain.answers["dataset"]["dataset_id"]
    async with connect(chain.home) as client:
        prompts = ["Who runs the shop?", "Where is the shop?", "What does the shop sell?"]
        asked = await call(client, "validate_adapter", adapter_id=adapter_id, prompts=prompts, max_new_tokens=24)
        held_out = await call(
            client, "validate_adapter", adapter_id=adapter_id, dataset_id=dataset_id, max_new_tokens=24
        )
        first, second = [(await follow(client, job["job_id"]))["result"] for job in (asked, held_out)]
        assert first["samples"] == 3 and first["metrics"]
        loss = second["metrics"]["loss"]
        assert loss["tuned"]["value"] < loss["base"]["value"]
        assert second["sentence"]

        shown = await call(client, "submit_judgements", job_id=asked["job_id"], count=2)
        assert len(shown["pairs"]) == 2 and shown["tally"]["revealed"] is None
        again = await call(client, "submit_judgements", **shown["next_steps"][0]["arguments"], count=3)
        assert again["tally"]["judged"] == 2
        last = await call(client, "submit_judgements", **again["next_steps"][0]["arguments"])
        assert last["tally"]["remaining"] == 0 and last["tally"]["win_rate"]["value"] == 0.5
        with pytest.raises(ToolFailed, match="pairs_revealed"):
            await call(client, "submit_judgements", **again["next_steps"][0]["arguments"])

        report = (await client.read_resource(f"tw://jobs/{held_out['job_id']}/report.html")).contents[0]
        assert second["sentence"].split(".")[0][:20] in _text(report)
        # The worker writes it once its job has succeeded.
        eventually((Path(chain.home) / "jobs" / held_out["job_id"] / "report.html").is_file)
        run_id = chain.answers["started"]["job_id"]
        page = _text((await client.read_resource(f"tw://jobs/{run_id}/report.html")).contents[0])
        for said in ("<svg", "train loss", "eval loss", "Plan and reality", held_out["job_id"], "../../datasets/"):
            assert said in page, said
        assert second["sentence"] in page.replace("&#39;", "'")
        workspace = Workspace.open(chain.home)
        text = card.build(workspace, workspace.store.artifact(adapter_id), "tester/shop")
        assert "## Evaluation" in text and "shop is open" not in text and chain.home not in text
        side_by_side = await call(client, "compare_runs", job_ids=[asked["job_id"], held_out["job_id"]])
        assert side_by_side["comparison"]


def _text(content: Any) -> str:
    return content.text


async def test_a_benchmark_scores_tuned_base_and_gguf_on_the_same_questions(chain: Chain, tmp_path: Path) -> None:
    adapter_id = chain.answers["training"]["result"]["adapter_id"]
    folder = write_exam(tmp_path / "ceval-exam")
    async with connect(chain.home) as client:
        started = await call(
            client, "benchmark_adapter", adapter_id=adapter_id, task_dir=str(folder), n_shot=1,
            export_id=chain.answers["export"]["export_id"],
        )  # fmt: skip
        result = (await follow(client, started["job_id"]))["result"]
    assert result["questions"] == 12
    assert set(result["models"]) == {"tuned", "base", "export"}
    for model in result["models"].values():
        found = model["subjects"][SUBJECT]
        assert found["of"] == 12 and found["accuracy"] == round(found["correct"] / 12, 4)
        assert model["accuracy"]["low"] <= found["correct"] / 12 <= model["accuracy"]["high"]
    pairs = {(comparison["a"], comparison["b"]) for comparison in result["comparisons"]}
    assert ("tuned", "base") in pairs
    assert "better" not in result["sentence"] or "tuned" in result["sentence"].lower()
