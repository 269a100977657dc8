"""llama.cpp's converter as its own program: `python -P -m …launch_converter FOLDER PRE_TOKENIZER arguments of it…`.

Names the pre-tokenizer where the converter does not know the vocabulary (`-` for no name: it then refuses, as always).
Only this process is changed; the converter's files are not.
"""

import importlib
import runpy
import sys
from pathlib import Path
from typing import Any

UNNAMED = "-"


def main() -> None:
    folder, pre_tokenizer = Path(sys.argv[1]), sys.argv[2]
    # Its own gguf package, not one that may be installed.
    sys.path[:0] = [str(folder / "gguf-py"), str(folder)]
    text_model = importlib.import_module("conversion.base").TextModel
    by_hash = text_model.get_vocab_base_pre

    def name(model: Any, tokenizer: Any) -> str:
        try:
            return by_hash(model, tokenizer)
        except NotImplementedError:
            if pre_tokenizer == UNNAMED:
                raise
            return pre_tokenizer

    text_model.get_vocab_base_pre = name
    sys.argv[:] = [str(folder / "convert_hf_to_gguf.py"), *sys.argv[3:]]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
