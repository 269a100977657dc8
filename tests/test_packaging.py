"""What hosts and the registry are given: the .mcpb bundle, its manifest, and the registry's server.json.

`.ci/packaging/run.py` has the bundles' own tool validate them, and starts the bundle's server as a host does.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGING = REPOSITORY / ".ci" / "packaging"
TIMEOUT_S = 120


def read(name: str) -> Any:
    return json.loads((PACKAGING / name).read_text(encoding="utf-8"))


def project() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle, made as CI makes it."""
    folder = tmp_path_factory.mktemp("bundle")
    made = subprocess.run(
        [sys.executable, "-P", PACKAGING / "bundle.py", folder], capture_output=True, encoding="utf-8", check=True,
        timeout=TIMEOUT_S,
    )  # fmt: skip
    return Path(made.stdout.strip())


def test_every_file_names_the_version_of_the_project() -> None:
    server = read("server.json")
    versions = {read("manifest.json")["version"], server["version"], *(each["version"] for each in server["packages"])}
    assert versions == {project()["version"]}


def test_the_bundle_holds_what_the_server_is_installed_from_and_nothing_else(bundle: Path) -> None:
    with zipfile.ZipFile(bundle) as archive:
        names = set(archive.namelist())
        assert json.loads(archive.read("manifest.json")) == read("manifest.json")
    assert {"manifest.json", "server.py", "pyproject.toml", "README.md", "LICENSE"} <= names
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "tools", "resources", "pipeline", "examples"],
        cwd=REPOSITORY, capture_output=True, encoding="utf-8", check=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    there = {name for name in tracked.stdout.splitlines() if (REPOSITORY / name).is_file()}
    assert {name for name in names if "/" in name} == there


def test_the_same_tree_makes_the_same_bundle(bundle: Path, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("bundle", PACKAGING / "bundle.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.make(tmp_path).read_bytes() == bundle.read_bytes()


def test_the_manifest_starts_a_server_with_and_without_what_the_user_fills_in(tmp_path: Path) -> None:
    config = read("manifest.json")["server"]["mcp_config"]
    assert config["command"] == "uv"
    begin = config["args"].index("tunewright")
    assert config["args"][:begin] == ["run", "--project", "${__dirname}", "--no-dev"]
    console = str(Path(sys.executable).with_name("tunewright"))
    for folders in ([], [str(tmp_path / "one folder"), str(tmp_path)]):
        arguments = [
            word
            for given in config["args"][begin + 1 :]
            for word in (folders if given == "${user_config.allowed_folders}" else [given])
        ]
        environment = {**os.environ, "TUNEWRIGHT_HOME": str(tmp_path / "home"), "HF_TOKEN": ""}
        served = subprocess.run(
            [console, *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, env=environment
        )
        assert (served.returncode, served.stdout) == (0, b"")


# The registry's rules, as its schema of 2025-12-11 states them; no package of PyPI or npm ships the schema itself.


def test_the_registry_would_take_the_servers_description() -> None:
    server = read("server.json")
    assert server["$schema"].endswith("/2025-12-11/server.schema.json")
    assert re.fullmatch(r"[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+", server["name"])
    assert 3 <= len(server["name"]) <= 200
    assert 1 <= len(server["description"]) <= 100
    assert 1 <= len(server["title"]) <= 100
    assert re.fullmatch(r"\d+\.\d+\.\d+", server["version"])
    assert set(server) <= {"$schema", "name", "title", "description", "version", "packages", "repository", "websiteUrl"}
    [package] = server["packages"]
    assert set(package) <= {
        "registryType", "identifier", "version", "runtimeHint", "transport", "environmentVariables"
    }  # fmt: skip
    assert package["registryType"] == "pypi"
    assert package["identifier"] == project()["name"]
    assert package["transport"] == {"type": "stdio"}
    for variable in package["environmentVariables"]:
        assert {"name"} < set(variable) <= {"name", "description", "format", "isSecret"}
        assert isinstance(variable.get("isSecret", False), bool)
        assert variable.get("format", "string") in ("string", "number", "boolean", "filepath")


def test_every_variable_that_the_registry_names_is_read_by_the_code() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "pipeline").rglob("*.py"))
    for variable in read("server.json")["packages"][0]["environmentVariables"]:
        assert f'"{variable["name"]}"' in code


def test_the_readme_proves_to_the_registry_whose_package_it_is() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"<!-- mcp-name: (\S+) -->", readme) == [read("server.json")["name"]]
