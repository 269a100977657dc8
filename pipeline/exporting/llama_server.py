"""llama.cpp's server as a child of `runtime.LlamaRuntime`: `python -P -m …llama_server`. Lives as long as its stdin.

llama.cpp prints on descriptors 1 and 2 and aborts its process where it fails; neither may happen to whoever uses it.
Reads one line of JSON (`model`, `n_ctx`, `api_key`, `threads`) from stdin and answers with one line, its address.
`threads` 0 leaves their number to llama.cpp.
"""

import importlib
import json
import os
import sys
from typing import Any


def main() -> None:
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answer:
        # From here on whatever is printed goes to the log.
        os.dup2(2, 1)
        # Untyped: a compiled module without stubs.
        xllamacpp: Any = importlib.import_module("xllamacpp")

        request = json.loads(sys.stdin.readline())
        parameters = xllamacpp.CommonParams()
        parameters.model.path = request["model"]
        parameters.n_ctx = request["n_ctx"]
        parameters.api_keys = [request["api_key"]]
        if request["threads"]:
            parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = request["threads"]
        parameters.hostnames = ["127.0.0.1"]
        parameters.port = 0
        parameters.ui = False
        parameters.warmup = False
        try:
            server = xllamacpp.Server(parameters)
        except RuntimeError:
            # llama.cpp has said why; the binding only says that it failed.
            os._exit(1)
        print(server.listening_address, file=answer, flush=True)
        sys.stdin.read()
    # Threads of llama.cpp may be at work; nothing here needs to be put in order.
    os._exit(0)


if __name__ == "__main__":
    main()
