"""A PEFT adapter as GGUF: on the base in llama.cpp it answers as peft's own layers do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunewright.pipeline import files
from tunewright.pipeline.errors import Cancelled, InvalidInput, TunewrightError
from tunewright.pipeline.exporting import lora_gguf

# Tokens of the tiny vocabulary; what they mean is all the same.
VOCABULARY = 480
PROMPTS = [[1, 300, 310, 320], [60, 70, 80], [400, 5, 6, 7, 8, 9]]
# What llama.cpp's f16 changes by itself; see ../shared/notes/export.md for a trained model's.
MAX_DIFFERENCE = 0.02
# The log-probabilities of every token after each prompt; of the base alone where no adapter is given.
NEXT_TOKEN = """
import json, os, sys, urllib.request
import xllamacpp
answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)
base, adapter, prompts, vocabulary = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
parameters = xllamacpp.CommonParams()
parameters.model.path = base
parameters.n_ctx = 256
parameters.hostnames, parameters.port = ["127.0.0.1"], 0
parameters.ui = parameters.warmup = False
if adapter:
    parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, 1.0)]
server = xllamacpp.Server(parameters)
found = []
for prompt in prompts:
    body = {"prompt": prompt, "n_predict": 1, "n_probs": vocabulary, "temperature": 0}
    request = urllib.request.Request(
        server.listening_address + "/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    opened = urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request)
    token = json.load(opened)["completion_probabilities"][0]
    found.append([one["logprob"] for one in sorted(token["top_logprobs"], key=lambda one: one["id"])])
print(json.dumps(found), file=answer, flush=True)
os._exit(0)
"""


@pytest.fixture(scope="module")
def options(converter: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    log = tmp_path_factory.mktemp("lora_gguf") / "converter.log"
    return {"adapter_scale": 1.0, "log": log, "check_cancelled": lambda: None}


@pytest.fixture(scope="module")
def halved(
    base: Path, adapter: Path, converter: Path, options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The plain adapter at half its strength."""
    file = tmp_path_factory.mktemp("halved") / "halved.gguf"
    lora_gguf.convert(converter, adapter, base, file, **options | {"adapter_scale": 0.5})
    assert [path.name for path in file.parent.iterdir()] == ["halved.gguf"]
    return file


@pytest.fixture
def in_llama_cpp(base_gguf: Callable[[str], Path], run_python: Callable[..., str]) -> Callable[..., torch.Tensor]:
    def log_probabilities(adapter: Path | str = "") -> torch.Tensor:
        arguments = (base_gguf("f16"), adapter, json.dumps(PROMPTS), VOCABULARY)
        return torch.tensor(json.loads(run_python(NEXT_TOKEN, *arguments)))

    return log_probabilities


def in_transformers(model: Any) -> torch.Tensor:
    """The same in float32."""
    with torch.no_grad():
        return torch.stack([model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1) for prompt in PROMPTS])


def scaled(folder: Path, target: Path, by: float) -> Path:
    """The adapter with its B matrices multiplied: what `adapter_scale` means."""
    target.mkdir()
    files.write_json(target / "adapter_config.json", files.read_json(folder / "adapter_config.json"))
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({k: v * by if "lora_B" in k else v for k, v in tensors.items()}, target / "adapter_model.safetensors")
    return target


def test_the_base_with_the_gguf_adapter_is_what_peft_makes_of_both(
    tiny: Any, base: Path, adapter: Path, halved: Path, in_llama_cpp: Callable[..., torch.Tensor], tmp_path: Path
) -> None:
    expected = in_transformers(tiny.with_adapter(base, scaled(adapter, tmp_path / "scaled", 0.5)))
    assert (in_llama_cpp(halved) - expected).abs().max() < MAX_DIFFERENCE
    assert (in_llama_cpp() - expected).abs().max() > 10 * MAX_DIFFERENCE


def test_rslora_and_patterns_scale_each_tensor_as_peft_does(
    tiny: Any,
    base: Path,
    converter: Path,
    options: dict[str, Any],
    in_llama_cpp: Callable[..., torch.Tensor],
    tmp_path: Path,
) -> None:
    adapter = tiny.adapter(
        tmp_path / "adapter", base, use_rslora=True, rank_pattern={"q_proj": 4}, alpha_pattern={"down_proj": 40}
    )
    lora_gguf.convert(converter, adapter, base, tmp_path / "one.gguf", **options)
    with_patterns = in_llama_cpp(tmp_path / "one.gguf")
    assert (with_patterns - in_transformers(tiny.with_adapter(base, adapter))).abs().max() < MAX_DIFFERENCE
    without = files.read_json(adapter / "adapter_config.json") | {"alpha_pattern": {}}
    files.write_json(adapter / "adapter_config.json", without)
    assert (with_patterns - in_transformers(tiny.with_adapter(base, adapter))).abs().max() > 10 * MAX_DIFFERENCE


def test_the_adapters_numbers_are_kept_where_alpha_says_it_all(adapter: Path, halved: Path, tmp_path: Path) -> None:
    written = halved.read_bytes()
    tensors = load_file(adapter / "adapter_model.safetensors")
    assert all(tensor.float().numpy().tobytes() in written for tensor in tensors.values())
    assert str(tmp_path.parent).encode() not in written


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "lm_head.weight' as a whole"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens"),
    ],
)
def test_what_a_gguf_adapter_cannot_say_is_refused(
    config: dict[str, Any],
    named: str,
    tiny: Any,
    base: Path,
    converter: Path,
    options: dict[str, Any],
    tmp_path: Path,
) -> None:
    adapter = tiny.adapter(tmp_path / "adapter", base, **config)
    with pytest.raises(InvalidInput) as caught:
        lora_gguf.convert(converter, adapter, base, tmp_path / "one.gguf", **options)
    assert caught.value.code == "adapter_not_expressible" and named in caught.value.what
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_converter_that_fails_is_an_error_with_its_words(
    base: Path, adapter: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(TunewrightError) as caught:
        lora_gguf.convert(tmp_path / "no-toolchain", adapter, base, tmp_path / "one.gguf", **options)
    assert caught.value.code == "conversion_failed" and "convert_lora_to_gguf.py" in caught.value.what
    assert not list(tmp_path.iterdir())


def test_a_cancel_leaves_nothing(
    base: Path, adapter: Path, converter: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    def cancelled() -> None:
        raise Cancelled("job-x")

    with pytest.raises(Cancelled):
        lora_gguf.convert(converter, adapter, base, tmp_path / "one.gguf", **options | {"check_cancelled": cancelled})
    assert not list(tmp_path.iterdir())
