"""Makes the .mcpb bundle: `python .ci/packaging/bundle.py FOLDER` writes `FOLDER/tunewright-VERSION.mcpb`.

A bundle is a zip archive of the manifest and what `uv` installs the server from: this project's own files, no packages.
The same tree gives the same bytes.
"""

import json
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
MANIFEST = Path(__file__).with_name("manifest.json")
AT_THE_TOP = ("server.py", "pyproject.toml", "README.md", "LICENSE")
FOLDERS = ("tools", "resources", "pipeline", "examples")
# Zip knows no earlier time; a file's own would make each bundle another.
NO_TIME = (1980, 1, 1, 0, 0, 0)


def files() -> Iterator[Path]:
    """Everything in a bundle but the manifest."""
    yield from (REPOSITORY / name for name in AT_THE_TOP)
    for folder in FOLDERS:
        for path in sorted((REPOSITORY / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path


def make(folder: Path) -> Path:
    """Writes the bundle into `folder`; returns its path. Raises ValueError where manifest and project disagree."""
    manifest = json.loads(MANIFEST.read_text(encoding="utf-8"))
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if manifest["version"] != project["version"]:
        raise ValueError(f"manifest.json says {manifest['version']}, pyproject.toml {project['version']}")
    folder.mkdir(parents=True, exist_ok=True)
    bundle = folder / f"{manifest['name']}-{manifest['version']}.mcpb"
    partial = bundle.with_name(f".{bundle.name}")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in (MANIFEST, *files()):
            name = path.name if path == MANIFEST else path.relative_to(REPOSITORY).as_posix()
            archive.writestr(zipfile.ZipInfo(name, NO_TIME), path.read_bytes(), zipfile.ZIP_DEFLATED)
    return partial.replace(bundle)


if __name__ == "__main__":
    sys.stdout.write(f"{make(Path(sys.argv[1]))}\n")
