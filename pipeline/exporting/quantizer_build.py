"""llama.cpp's quantizer from its sources: one small program, which runs on every processor of its kind. Light.

Guarantees: the program appears under its name only after it has run; nothing else of a build is left, and the next one
begins anew. Does not install a compiler: that is for the machine's owner to decide.
"""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from tunewright.pipeline import files
from tunewright.pipeline.errors import Unavailable, call
from tunewright.pipeline.exporting import programs, quantizer
from tunewright.pipeline.exporting.outputs import DIRECT, GGUF

MINUTES = 5
# The build takes 60 MB, the two wheels unpacked 100.
NEEDED_BYTES = 300_000_000
# What one compiler takes at its largest file; a machine with many cores must not run out of memory.
GIB_PER_COMPILER = 1.5
COMPILERS = (("CC", ("cc", "gcc", "clang")), ("CXX", ("c++", "g++", "clang++")))
# Wheels of Kitware's and ninja's own maintainers, as scikit-build uses them: Linux x86_64 and arm64, macOS.
WHEELS = {
    "cmake": (
        "4.4.4",
        "f773a0544c66370408f451acd487c2c643b0dfebb48c5d64f3638bc1bb820238",
        "b3029f586853e01ddf2824c1ff124a1c5284f8ae897994758e9c4eeb45903b58",
        "883962a72b1b3a16ff445427f24c8caca9797dd9e563bbe208cbcd89e877f9d3",
    ),
    "ninja": (
        "1.13.2",
        "65a24341b5ac09fcadcc37082660be40a94174e51a937fabf6e2cae26225fa2c",
        "d775a5e43e9088f507a6250d57fcf5678eb31268c545feb5064ffeee33735622",
        "fd82e26c0706ad4ab88e5fdd26f3fab0a987a90f810160f6c322e752c6af298b",
    ),
}
# Within the folder that a wheel is installed into.
IN_WHEEL = {"cmake": "cmake/data/bin/cmake", "ninja": "bin/ninja"}
# Quantizing is done by ggml's C code, for any processor; the backends only compute with models. So none is built, and
# nothing asks what this processor has (`native` builds for AMX crash with GCC 12). The C++ is chat and the like: the
# optimizer would take half of the time for nothing.
OPTIONS = (
    "CMAKE_BUILD_TYPE=Release", "CMAKE_CXX_FLAGS_RELEASE=-O1 -DNDEBUG", "BUILD_SHARED_LIBS=OFF",
    "GGML_NATIVE=OFF", "GGML_CPU=OFF", "GGML_METAL=OFF", "GGML_BLAS=OFF", "GGML_OPENMP=OFF", "GGML_CCACHE=OFF",
    "LLAMA_BUILD_TESTS=OFF", "LLAMA_BUILD_EXAMPLES=OFF", "LLAMA_BUILD_SERVER=OFF", "LLAMA_BUILD_APP=OFF",
    "LLAMA_OPENSSL=OFF",
)  # fmt: skip
STEP = re.compile(rb"^\[(\d+)/(\d+)\]", re.MULTILINE)


def has_compiler() -> bool:
    """Whether there are a C and a C++ compiler, by the names that cmake looks for."""
    wanted = ((os.environ.get(variable, "").split()[:1] or names) for variable, names in COMPILERS)
    return all(any(shutil.which(name) for name in names) for names in wanted)


def require_compiler() -> None:
    """Raises Unavailable without a C and C++ compiler, saying how to get one and what works without."""
    if not has_compiler():
        direct = [GGUF + name for name in DIRECT]
        raise Unavailable(
            "no_compiler",
            "This machine has no llama-quantize, and no C and C++ compiler to build it with.",
            allowed="Install a compiler (Debian, Ubuntu: `apt-get install g++`; Fedora: `dnf install gcc-c++`; macOS: "
            "`xcode-select --install`) or a llama-quantize in PATH. Without either, the outputs "
            f"{', '.join(direct)} work, and Ollama makes q4_k_m and q4_k_s of gguf:f16 itself.",
            next=call("merge_and_export", adapter_id="…", outputs=direct[:1]),
            done="Nothing was exported.",
        )


def build(
    sources: Path,
    program: Path,
    log: Path,
    check_cancelled: Callable[[], None],
    progress: Callable[[str, float, float], None],
) -> None:
    """Builds the quantizer of llama.cpp's `sources` beside them, and puts it at `program` (on the same disk).

    Everything that is said goes to `log`, the steps done to `progress`. Raises Unavailable where a tool cannot be had
    or the build fails, NoSpace, and what `check_cancelled` raises.
    """
    cache = sources.parent
    files.require_space(cache, NEEDED_BYTES, "Building llama.cpp's quantizer")

    def watch() -> None:
        check_cancelled()
        steps = STEP.findall(programs.tail(log))
        if steps:
            progress("building llama-quantize", *map(int, steps[-1]))

    # A compiler that a killed build left behind may still write into its folder: so each attempt has its own.
    with TemporaryDirectory(prefix=f"{files.PARTIAL}llama.cpp-", dir=cache, ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        cmake, ninja = (_tool(name, folder, log, check_cancelled) for name in WHEELS)
        configure = [cmake, "-S", str(sources), "-B", str(folder), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        # The build asks git for a revision: not that of a repository which the cache may lie in.
        env = {"GIT_CEILING_DIRECTORIES": str(cache)}
        for command in (
            [*configure, *(f"-D{option}" for option in OPTIONS)],
            [ninja, "-C", temporary, "-j", str(_compilers_at_once()), program.name],
        ):
            if programs.run(command, log, watch, env=env) != 0:
                raise _failed(Path(command[0]).name, log)
        built = folder / "bin" / program.name
        if not quantizer.runs(built):
            raise _failed("what was built", log)
        program.parent.mkdir(exist_ok=True)
        built.replace(program)


def _failed(what: str, log: Path) -> Unavailable:
    return Unavailable(
        "no_quantizer",
        f"llama.cpp's quantizer could not be built: {what} failed ({programs.last_line(log)}).",
        allowed=f"What was said stands in {log}. Another compiler (CC, CXX), or a llama-quantize in PATH; without one, "
        f"{', '.join(DIRECT)} work.",
        next=call("merge_and_export", adapter_id="…", outputs=[GGUF + DIRECT[0]]),
        done="Nothing was exported.",
    )


def _compilers_at_once() -> int:
    by_memory = int(psutil.virtual_memory().available / 2**30 / GIB_PER_COMPILER)
    return max(1, min(os.cpu_count() or 1, by_memory))


def _tool(name: str, folder: Path, log: Path, check_cancelled: Callable[[], None]) -> str:
    """The program `name` of PATH, else of its wheel, installed below `folder`."""
    found = shutil.which(name)
    if found:
        return found
    place = folder / f"{name}-wheel"
    place.mkdir()
    _install(name, place, log, check_cancelled)
    return str(place / IN_WHEEL[name])


def _install(name: str, folder: Path, log: Path, check_cancelled: Callable[[], None]) -> None:
    version, *digests = WHEELS[name]
    requirements = folder / "requirements.txt"
    files.write_text(requirements, f"{name}=={version} {' '.join(f'--hash=sha256:{d}' for d in digests)}\n")
    command = [*programs.PIP, "install", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
    command += ["--progress-bar", "off", "--target", str(folder), "--requirement", str(requirements)]
    if programs.run(command, log, check_cancelled, env={"TMPDIR": str(folder)}) != 0:
        raise Unavailable(
            f"no_{name}",
            f"Building llama-quantize needs {name}: it is not in PATH, and version {version} could not be installed "
            f"from the package index ({programs.last_line(log)}).",
            allowed=f"Install {name} (`apt-get install cmake ninja-build`), or reach a package index; without a "
            f"quantizer, {', '.join(DIRECT)} work.",
            next=call("merge_and_export", adapter_id="…", outputs=[GGUF + DIRECT[0]]),
            done=f"Nothing was exported. pip's output: {log}.",
        )
