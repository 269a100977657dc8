"""A merged model as GGUF, by llama.cpp's own converter, with the chat template as it was in training.

Where the template has a thinking switch and training had it off, the switch is set inside the template: Ollama and
others turn it on by themselves, and the model would get a prompt that it never saw. Light.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from tunewright.pipeline import files
from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.errors import TunewrightError
from tunewright.pipeline.exporting import pretokenizer, programs, spm_vocabulary
from tunewright.pipeline.exporting.launch_converter import UNNAMED

LAUNCHER = "tunewright.pipeline.exporting.launch_converter"
# "if undefined" would not do: who turns thinking on does define it.
THINKING_OFF = "{%- set enable_thinking = false %}"


def lay_out(merged: Path, folder: Path, *, enable_thinking: bool) -> None:
    """Fills the empty `folder` with what the converter reads: `merged`, its weights linked, its template fixed.

    So is a tokenizer of which the converter needs more than transformers keeps. The files of `merged` stay as they are.
    """
    for file in merged.iterdir():
        if file.suffix == ".safetensors":
            (folder / file.name).symlink_to(file.resolve())
        elif file.is_file():
            shutil.copyfile(file, folder / file.name)
    template = ChatTemplate(merged)
    fixed = THINKING_OFF + template.source if template.has_thinking_switch and not enable_thinking else template.source
    files.write_text(folder / "chat_template.jinja", fixed)
    config_file = folder / "tokenizer_config.json"
    if config_file.is_file():
        config = files.read_json(config_file)
        # One place for the template: the converter would read this one first, transformers reads the file.
        config.pop("chat_template", None)
        # DeepSeek's models say so; since transformers 5 that class cuts their text at spaces, whatever their
        # tokenizer.json says.
        if config.get("tokenizer_class") in ("LlamaTokenizer", "LlamaTokenizerFast") and pretokenizer.recognise(merged):
            config["tokenizer_class"] = "PreTrainedTokenizerFast"
        files.write_json(config_file, config)
    spm_vocabulary.add_to(folder, template.render([{"role": "user", "content": "Hello"}], add_generation_prompt=True))


def convert(
    toolchain: Path, model: Path, file: Path, outtype: str, *, name: str, log: Path, check_cancelled: Callable[[], None]
) -> None:
    """Writes the model folder `model` (see `lay_out`) as GGUF `file` of `outtype` (f16, bf16, q8_0).

    `name` is what the file calls its model. The converter's output goes to `log`. Raises TunewrightError where it
    fails, and what `check_cancelled` raises; the caller removes what was written.
    """
    command = [
        sys.executable, "-P", "-m", LAUNCHER, str(toolchain), pretokenizer.recognise(model) or UNNAMED,
        str(model), "--outfile", str(file), "--outtype", outtype, "--model-name", name,
    ]  # fmt: skip
    # Everything is local, and a llama.cpp that is not ours stays as it is.
    env = {"HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1", "CUDA_VISIBLE_DEVICES": ""}
    if programs.run(command, log, check_cancelled, env=env) != 0 or not file.is_file():
        raise TunewrightError(
            "conversion_failed",
            f"llama.cpp's converter could not write gguf:{outtype}: {programs.last_line(log)}.",
            allowed=f"Its output stands in {log}. A newer llama.cpp may know the model: name its folder in "
            "TUNEWRIGHT_LLAMA_CPP.",
            next='merge_and_export(adapter_id="…", outputs=["merged_16bit"])',
            done="No export was kept; the adapter is unchanged.",
        )
