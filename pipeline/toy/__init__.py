"""The built-in toy: a Qwen3 of about four million parameters that needs no network, no account and no GPU.

`prepare` writes its tokenizer, template and config in a moment (the server may do that); `weights.train` brings its
weights up in about a minute, once per data home. Both are deterministic on one machine. Good for seeing the whole
chain work; not for real work.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from tunewright.pipeline import files
from tunewright.pipeline.settings import Home
from tunewright.pipeline.toy.corpus import conversations

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Raised whenever the corpus, the tokenizer or the training changes what comes out.
VERSION = 1
VOCABULARY = 1200
# Qwen2's split, so that llama.cpp's own pre-tokenizer of that name gives the same tokens.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONTROL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Tokens of their own, but text: Qwen3 shows its thinking between them.
THINK_TOKENS = ["<think>", "</think>"]
CONTEXT_TOKENS = 2048


def folder(home: Home) -> Path:
    return home.models / f"toy-qwen3-v{VERSION}"


def lock(home: Home) -> FileLock:
    """Held while the toy is made, so that two processes never make it at once."""
    return FileLock(home.models / "toy.lock", thread_local=False)


def is_trained(home: Home) -> bool:
    return (folder(home) / "model.safetensors").is_file()


def prepare(home: Home) -> Path:
    """The toy's folder with tokenizer, chat template and config, made when missing. Its weights may be missing yet."""
    final = folder(home)
    if final.exists():
        return final
    with lock(home):
        if not final.exists():
            with files.new_folder(final) as new:
                _write(new)
    return final


def _write(new: Path) -> None:
    tokenizer = _train_tokenizer()
    tokenizer.save(str(new / "tokenizer.json"))
    template = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")
    files.write_text(new / "chat_template.jinja", template)
    end = tokenizer.token_to_id("<|im_end|>")
    pad = tokenizer.token_to_id("<|endoftext|>")
    files.write_json(
        new / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
            "model_max_length": CONTEXT_TOKENS, "add_bos_token": False, "clean_up_tokenization_spaces": False,
        },
    )  # fmt: skip
    files.write_json(
        new / "config.json",
        {
            "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "dtype": "float32",
            "vocab_size": VOCABULARY, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "hidden_act": "silu",
            "max_position_embeddings": CONTEXT_TOKENS, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "tie_word_embeddings": True, "attention_bias": False, "attention_dropout": 0.0, "use_cache": True,
            "use_sliding_window": False, "bos_token_id": None, "eos_token_id": end, "pad_token_id": pad,
        },
    )  # fmt: skip
    files.write_json(
        new / "generation_config.json",
        {
            "do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20,
            "eos_token_id": [end, pad], "pad_token_id": pad,
        },
    )  # fmt: skip


def _train_tokenizer() -> "Tokenizer":
    # Once per home: an idle server does not pay for it.
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(THINK_TOKENS), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=CONTROL_TOKENS, show_progress=False,
    )  # fmt: skip
    texts = [message["content"] for conversation in conversations() for message in conversation]
    tokenizer.train_from_iterator([*texts, "system user assistant\n"], trainer)
    tokenizer.add_tokens(THINK_TOKENS)
    return tokenizer
