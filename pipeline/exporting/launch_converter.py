"""llama.cpp's converter as its own program: `python -P -m …launch_converter FOLDER PRE_TOKENIZER arguments of it…`.

Names the pre-tokenizer (`-` for no name: the converter then looks for itself, and refuses what it does not know).
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
    if pre_tokenizer != UNNAMED:
        # Over the converter's own guess too: it goes by the ids of one text, which two ways of splitting may share.
        def name(model: Any, tokenizer: Any) -> str:
            return pre_tokenizer

        text_model.get_vocab_base_pre = name
    sys.argv[:] = [str(folder / "convert_hf_to_gguf.py"), *sys.argv[3:]]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
