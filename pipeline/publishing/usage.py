"""The part of the model card that says how to load what lies in the repository, ready to be copied."""

from collections.abc import Sequence
from pathlib import Path

from tunewright.pipeline.exporting.outputs import LORA, LORA_GGUF, MERGED, MERGED_4BIT, gguf_type, is_gguf
from tunewright.pipeline.publishing import layout, lineage
from tunewright.pipeline.store import Row


def section(artifact: Row, adapter: Row, repo_id: str, outputs: Sequence[str]) -> str:
    """How to use an adapter, or `outputs` of an export, in transformers, PEFT, Ollama and llama.cpp."""
    thinking = bool(adapter["document"].get("enable_thinking"))
    base, base_id = lineage.base_of(adapter), lineage.hub_id(adapter["document"]["base_model"])
    folders = layout.folders(outputs)
    parts: list[str] = []
    if MERGED in outputs or lineage.is_whole(artifact):
        parts.append(_whole("Transformers:", repo_id, "", thinking))
    if MERGED_4BIT in outputs:
        head = "Transformers, in 4 bits on a GPU (needs bitsandbytes):"
        parts.append(_whole(head, repo_id, folders[MERGED_4BIT], thinking))
    is_adapter = artifact["kind"] == "adapter" and not lineage.is_whole(artifact)
    if LORA in outputs or is_adapter:
        parts.append(_peft(repo_id, folders.get(LORA, ""), base, base_id, thinking))
    if any(is_gguf(output) for output in outputs):
        parts.append(_gguf(artifact, repo_id, outputs))
    if LORA_GGUF in outputs:
        parts.append(_lora_gguf(artifact, base))
    if is_adapter:
        parts.append(
            "For Ollama or llama.cpp, merge the adapter into its base and convert the result to GGUF "
            "(Tunewright: `merge_and_export`, then `publish_to_ollama`)."
        )
    return "## How to use\n\n" + "\n\n".join(parts)


def _source(repo_id: str, folder: str) -> str:
    """The arguments of `from_pretrained` for a folder (a prefix of `layout.folders`) of the repository."""
    return f'"{repo_id}"' + (f', subfolder="{folder.rstrip("/")}"' if folder else "")


def _whole(head: str, repo_id: str, folder: str, thinking: bool) -> str:
    source = _source(repo_id, folder)
    load = f'model = AutoModelForCausalLM.from_pretrained({source}, dtype="auto", device_map="auto")'
    imports = "from transformers import AutoModelForCausalLM, AutoTokenizer"
    return f"{head}\n\n```python\n{imports}\n\n{load}\n{_ask(source, thinking)}\n```"


def _peft(repo_id: str, folder: str, base: str, base_id: str | None, thinking: bool) -> str:
    head = "Transformers and PEFT:" if base_id else f"Transformers and PEFT, with your own copy of `{base}`:"
    source = _source(repo_id, folder)
    load = (
        f'base = AutoModelForCausalLM.from_pretrained("{base_id or base}", dtype="auto", device_map="auto")\n'
        f"model = PeftModel.from_pretrained(base, {source})"
    )
    imports = "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer"
    return f"{head}\n\n```python\n{imports}\n\n{load}\n{_ask(source, thinking)}\n```"


def _ask(source: str, thinking: bool) -> str:
    return (
        f"tokenizer = AutoTokenizer.from_pretrained({source})\n"
        'messages = [{"role": "user", "content": "Hello"}]\n'
        "prompt = tokenizer.apply_chat_template(\n"
        f'    messages, add_generation_prompt=True, enable_thinking={thinking}, return_tensors="pt", return_dict=True\n'
        ").to(model.device)\n"
        "answer = model.generate(**prompt, max_new_tokens=256)\n"
        'print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True))'
    )


def _file(artifact: Row, output: str) -> str:
    return next(Path(entry["path"]).name for entry in artifact["document"]["files"] if entry["output"] == output)


def _gguf(artifact: Row, repo_id: str, outputs: Sequence[str]) -> str:
    """Commands for the recommended GGUF, else the first; both programs take its type as a tag."""
    ggufs = [output for output in outputs if is_gguf(output)]
    parity = artifact["document"].get("parity") or {}
    advised = (parity.get("recommendation") or {}).get("output")
    chosen = advised if advised in ggufs else ggufs[0]
    source = f"{repo_id}:{gguf_type(chosen).upper()}"
    commands = f"ollama run hf.co/{source}\nllama-server -hf {source}\nllama-cli -m {_file(artifact, chosen)} -cnv"
    note = "The chat template lies in the GGUF. From a private repository Ollama pulls once its key "
    note += "(`~/.ollama/id_ed25519.pub`) stands in your account, and llama.cpp with HF_TOKEN set."
    return f"Ollama and llama.cpp:\n\n```sh\n{commands}\n```\n\n{note}"


def _lora_gguf(artifact: Row, base: str) -> str:
    file = _file(artifact, LORA_GGUF)
    command = f"llama-server -m BASE.gguf --lora {file}"
    modelfile = f"FROM BASE.gguf\nADAPTER {file}"
    return (
        f"The adapter over a GGUF of `{base}` in 16 bits or a quantization of it, in llama.cpp:\n\n"
        f"```sh\n{command}\n```\n\nand in a Modelfile of Ollama:\n\n```\n{modelfile}\n```"
    )
