"""SentencePiece vocabularies from tokenizer.json: the converter must not notice that their own file is gone."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer

from tunewright.pipeline import files
from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.exporting import gguf, spm_vocabulary
from tunewright.pipeline.exporting.runtime import LlamaRuntime

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    from transformers import AutoTokenizer, Gemma3Config, Gemma3ForConditionalGeneration

TEXTS = [
    "The quick brown fox jumps over 13 lazy dogs, doesn't it? They're 4.5 m away.",
    "def main() -> int:\n    return 0\n\n\tsystem user assistant\n",
    "Größe, naïve, Привет, 你好世界, 🚀 the  two   spaces",
]
VOCABULARY = 420
PROMPT = "<s><|im_start|>user\nHello<|im_end|>\n"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.model by SentencePiece itself."""
    folder = tmp_path_factory.mktemp("spm")
    (folder / "texts.txt").write_text("\n".join(TEXTS * 30), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "texts.txt"), model_prefix=str(folder / "tokenizer"), vocab_size=VOCABULARY,
        model_type="bpe", byte_fallback=True, character_coverage=1.0, split_digits=True, pad_id=-1, minloglevel=2,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
        user_defined_symbols=["<|im_start|>", "<|im_end|>"],
    )  # fmt: skip
    return folder / "tokenizer.model"


@pytest.fixture
def saved(trained: Path, tmp_path: Path) -> Callable[..., Path]:
    """The same as transformers saves it: without the tokenizer.model."""

    def save(kind: str, **config: Any) -> Path:
        source, folder = tmp_path / "source", tmp_path / "saved"
        source.mkdir()
        (source / "tokenizer.model").write_bytes(trained.read_bytes())
        specials = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        files.write_json(source / "tokenizer_config.json", {"tokenizer_class": kind, **specials, **config})
        tokenizer = AutoTokenizer.from_pretrained(source)
        tokenizer.chat_template = TEMPLATE
        tokenizer.add_tokens(["<new>"])
        tokenizer.save_pretrained(folder)
        assert not (folder / "tokenizer.model").exists()
        return folder

    return save


def test_the_file_made_cuts_text_as_the_original_does(saved: Callable[..., Path], trained: Path) -> None:
    folder = saved("LlamaTokenizer", legacy=True)
    assert spm_vocabulary.add_to(folder, PROMPT)
    made, original = (sentencepiece.SentencePieceProcessor(str(file)) for file in (folder / "tokenizer.model", trained))
    assert [made.IdToPiece(i) for i in range(VOCABULARY)] == [original.IdToPiece(i) for i in range(VOCABULARY)]
    for kind in ("IsControl", "IsUnknown", "IsByte", "IsUnused"):
        expected = [getattr(original, kind)(i) for i in range(VOCABULARY)]
        assert [getattr(made, kind)(i) for i in range(VOCABULARY)] == expected, kind
    assert [made.Encode(text) for text in TEXTS] == [original.Encode(text) for text in TEXTS]


def test_tokens_added_in_training_are_told_beside_it(saved: Callable[..., Path]) -> None:
    folder = saved("LlamaTokenizer")
    spm_vocabulary.add_to(folder, PROMPT)
    told = files.read_json(folder / "tokenizer_config.json")["added_tokens_decoder"]
    assert told[str(VOCABULARY)]["content"] == "<new>" and told["1"]["special"] is True


@pytest.mark.parametrize(
    ("kind", "legacy", "prompt", "begins"),
    [
        ("LlamaTokenizer", True, PROMPT, True),
        ("LlamaTokenizer", False, PROMPT, False),
        ("LlamaTokenizer", False, "User: Hello", True),
        ("GemmaTokenizer", False, PROMPT, False),
    ],
)
def test_a_space_goes_before_a_text_where_the_tokenizer_puts_one_in_chats(
    kind: str, legacy: bool, prompt: str, begins: bool, saved: Callable[..., Path]
) -> None:
    folder = saved(kind, legacy=legacy)
    spm_vocabulary.add_to(folder, prompt)
    assert files.read_json(folder / "tokenizer_config.json")["add_prefix_space"] is begins
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(prompt, add_special_tokens=False).tokens
    after_control = ids[2] if prompt == PROMPT else ids[0]
    assert after_control.startswith("▁") is begins


def test_old_files_put_the_space_in_their_normalizer(saved: Callable[..., Path]) -> None:
    folder = saved("LlamaTokenizer")
    tokenizer = files.read_json(folder / "tokenizer.json")
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}
    tokenizer["pre_tokenizer"] = None
    files.write_json(folder / "tokenizer.json", tokenizer)
    spm_vocabulary.add_to(folder, PROMPT)
    assert files.read_json(folder / "tokenizer_config.json")["add_prefix_space"] is True


def test_a_byte_level_tokenizer_is_left_alone(tiny: Any, tmp_path: Path) -> None:
    tiny.tokenizer(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert not spm_vocabulary.add_to(tmp_path, PROMPT)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_text_part_of_a_gemma_3_speaks_in_llama_cpp_as_in_transformers(
    saved: Callable[..., Path], converter: Path, tmp_path: Path
) -> None:
    model = saved("GemmaTokenizer")
    torch.manual_seed(1)
    text = {
        "vocab_size": VOCABULARY + 1, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "query_pre_attn_scalar": 64,
        "max_position_embeddings": 512, "sliding_window": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=5)
    Gemma3ForConditionalGeneration(config).bfloat16().save_pretrained(model)
    (tmp_path / "layout").mkdir()
    gguf.lay_out(model, tmp_path / "layout", enable_thinking=False)
    file = tmp_path / "gemma.gguf"
    log = tmp_path / "converter.log"
    gguf.convert(converter, tmp_path / "layout", file, "f16", name="gemma", log=log, check_cancelled=lambda: None)
    template = ChatTemplate(model)
    question = [{"role": "user", "content": TEXTS[0]}]
    prompt = template.ids(template.render(question, add_generation_prompt=True))
    with LlamaRuntime(file, log=tmp_path / "llama.log", n_ctx=256) as runtime:
        assert [runtime.tokenize(text, add_special=False) for text in TEXTS] == [template.ids(text) for text in TEXTS]
        assert runtime.tokenize(runtime.apply_template(question)) == prompt
        answer = runtime.chat(question, max_tokens=1)["tokens"]
    loaded = Gemma3ForConditionalGeneration.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        assert answer == [int(loaded(torch.tensor([prompt])).logits[0, -1].argmax())]
    assert json.loads((model / "config.json").read_text(encoding="utf-8"))["architectures"] == [
        "Gemma3ForConditionalGeneration"
    ]
