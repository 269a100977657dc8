import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tunewright.pipeline import files, toy
from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.settings import Home
from tunewright.pipeline.workspace import Workspace

PREPARE = "import sys; from tunewright.pipeline import toy; from tunewright.pipeline.settings import Home; " + (
    "home = Home.open(sys.argv[1]); print('ready', flush=True); sys.stdin.readline(); toy.prepare(home)"
)
# What the toy says, greedily, to each question on the command line, without its end.
ANSWER = """
import sys
from pathlib import Path
from tunewright.pipeline.chat_template import ChatTemplate
import torch
from transformers import Qwen3ForCausalLM
folder = Path(sys.argv[1])
template, model = ChatTemplate(folder), Qwen3ForCausalLM.from_pretrained(folder).eval()
for question in sys.argv[2:]:
    ids = template.ids(template.render([{"role": "user", "content": question}], add_generation_prompt=True))
    greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    answer = model.generate(torch.tensor([ids]), max_new_tokens=40, **greedy)[0, len(ids):].tolist()
    ended = answer[-1] == template.tokenizer.token_to_id("<|im_end|>")
    print(template.tokenizer.decode(answer), ended)
"""


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_the_toy_is_the_same_in_every_home(toy_folder: Path, tmp_path: Path) -> None:
    assert digests(toy.prepare(Home.open(tmp_path / "home"))) == digests(toy_folder)


def test_processes_that_make_the_toy_at_once_make_one(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-c", PREPARE, str(tmp_path / "home")]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8") for _ in range(3)
    ]
    for process in processes:
        assert process.stdout and process.stdout.readline() == "ready\n"
    for process in processes:
        process.communicate("\n", timeout=60)
        assert process.returncode == 0
    home = Home.open(tmp_path / "home")
    assert {entry.name for entry in home.models.iterdir()} == {toy.folder(home).name, "toy.lock"}


@pytest.mark.parametrize("text", ["plain", "  spaces  \n\n\ttab", "Grüße 你好 👩‍🚀", "\x00\x7f", "12345 it's"])
def test_its_tokenizer_loses_nothing(toy_folder: Path, text: str) -> None:
    template = ChatTemplate(toy_folder)
    assert template.tokenizer.decode(template.ids(text), skip_special_tokens=False) == text


def test_its_shape_fits_its_tokenizer_and_every_quantization(toy_folder: Path) -> None:
    config = files.read_json(toy_folder / "config.json")
    template = ChatTemplate(toy_folder)
    assert template.tokenizer.get_vocab_size() == config["vocab_size"] == toy.VOCABULARY
    assert template.has_thinking_switch
    # llama.cpp's K-quants work on rows of 256.
    assert config["hidden_size"] % 256 == 0 and config["intermediate_size"] % 256 == 0


def test_a_trained_toy_makes_small_talk_and_ends_its_answers(
    toy_workspace: Workspace, run_python: Callable[..., str]
) -> None:
    assert toy.is_trained(toy_workspace.home)
    folder = toy.prepare(toy_workspace.home)
    answers = run_python(ANSWER, folder, "Who are you?", "Hello", "Thank you").splitlines()
    expected = ["I am a small language model. True", "Hello! How can I help you? True", "You are welcome. True"]
    assert answers == expected
