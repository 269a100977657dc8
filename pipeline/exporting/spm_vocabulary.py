"""A SentencePiece vocabulary for llama.cpp's converter, made from a `tokenizer.json` that was one before. Light.

Llama 2, Mistral and Gemma have such tokenizers. transformers 5 saves them without their `tokenizer.model`, from which
the converter takes the pieces' scores; without, it writes a vocabulary that cuts text otherwise, or fails. A score says
no more than which pair is merged first: the order of the merges says the same. Token-id equality is proven afterwards,
by the export's parity.
"""

import importlib
from pathlib import Path
from typing import Any

from tunewright.pipeline import files

BYTES = [f"<0x{number:02X}>" for number in range(256)]


def add_to(folder: Path, prompt: str) -> bool:
    """Adds `tokenizer.model`, and its special tokens to `tokenizer_config.json`, where `tokenizer.json` needs it.

    What lies there under these names is replaced: `tokenizer.json` is what training used. `prompt` is one that the
    model's template made. Returns whether anything was to do.
    """
    file, config_file = folder / "tokenizer.json", folder / "tokenizer_config.json"
    tokenizer: dict[str, Any] = files.read_json(file) if file.is_file() else {}
    model: dict[str, Any] = tokenizer.get("model", {})
    vocabulary: dict[str, int] = model["vocab"] if model.get("type") == "BPE" else {}
    unknown = model.get("unk_token") or "<unk>"
    if not model.get("byte_fallback") or unknown not in vocabulary or not vocabulary.keys() >= set(BYTES):
        return False
    added: list[dict[str, Any]] = tokenizer.get("added_tokens", [])
    begins_with_space = _begins_with_space(tokenizer, prompt)
    (folder / "tokenizer.model").write_bytes(_model(model, unknown, added, begins_with_space))
    # Beside the pieces the converter wants to be told which tokens are whole, and which of them control.
    (folder / "added_tokens.json").unlink(missing_ok=True)
    config: dict[str, Any] = files.read_json(config_file) if config_file.is_file() else {}
    config["added_tokens_decoder"] = {str(token["id"]): token for token in added}
    config["add_prefix_space"] = begins_with_space
    files.write_json(config_file, config)
    return True


def _model(model: dict[str, Any], unknown: str, added: list[dict[str, Any]], begins_with_space: bool) -> bytes:
    # SentencePiece's own definition of its file; the converter reads it by the same package. It is generated: untyped.
    format: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    rank: dict[str, int] = {}
    for number, merge in enumerate(model["merges"]):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        rank.setdefault("".join(pair), number)
    kinds = format.ModelProto.SentencePiece
    kind = {token["content"]: kinds.CONTROL if token["special"] else kinds.USER_DEFINED for token in added}
    kind |= dict.fromkeys(BYTES, kinds.BYTE) | {unknown: kinds.UNKNOWN}
    pieces = {number: piece for piece, number in model["vocab"].items()}
    made = format.ModelProto()
    made.trainer_spec.model_type = format.TrainerSpec.BPE
    made.trainer_spec.byte_fallback = True
    made.normalizer_spec.add_dummy_prefix = begins_with_space
    made.normalizer_spec.remove_extra_whitespaces = False
    for number in range(max(pieces) + 1):
        piece = pieces.get(number)
        made.pieces.add(
            piece=piece or f"[PAD{number}]",
            # Whatever no merge makes, such as a letter, comes after everything that one does.
            score=-rank.get(piece or "", len(rank) + number),
            type=kind.get(piece, kinds.NORMAL) if piece else kinds.UNUSED,
        )
    return made.SerializeToString()


def _begins_with_space(tokenizer: dict[str, Any], prompt: str) -> bool:
    """Whether a space is put before each text: by old files in the normalizer, by new ones where words are cut.

    llama.cpp does it at the beginning and after each control token, or never. What does it at the beginning only never
    does it in a chat whose prompts begin with a control token.
    """
    normalizer: dict[str, Any] = tokenizer.get("normalizer") or {}
    cut: dict[str, Any] = tokenizer.get("pre_tokenizer") or {}
    steps = [*normalizer.get("normalizers", [normalizer]), *cut.get("pretokenizers", [cut])]
    schemes = [step.get("prepend_scheme") for step in steps if step.get("type") == "Metaspace"]
    if "first" in schemes:
        return not prompt.startswith(tuple(token["content"] for token in tokenizer["added_tokens"]))
    return "always" in schemes or any(step.get("type") == "Prepend" for step in steps)
