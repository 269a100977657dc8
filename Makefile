# `make demo` shows it work, `make test` tests it, `make check` reads the code. Each makes .venv when it is missing.
# Needs Python >= 3.11 with venv, and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Many images set it. Without bytecode every process compiles Unsloth and torch anew: 38 s instead of 12, a hundred times.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check conformance bundle faults format lock clean

demo: $(STAMP)
	@$(BIN)/tunewright demo

# A file whole in one process, as its tests share what takes long to make; in the order of the tree, the longest first.
test: $(STAMP)
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# The official conformance suite and the inspector against the server over HTTP. Needs the npm registry the first time.
conformance: $(STAMP)
	$(BIN)/python .ci/conformance/run.py

# dist/tunewright-VERSION.mcpb, validated and started as a host would; uvx from a fresh copy.
bundle: $(STAMP)
	$(BIN)/python .ci/packaging/run.py

# Kills, full disks, broken files and networks while the toy is at work; about an hour. One JSON line a round.
faults: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -P -m faults --rounds 500 --seed 1

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Exactly the pins of requirements.lock, without resolving; then this folder itself, editable.
$(STAMP): requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (some 6 GB, mostly CUDA libraries; about half a minute on a fast line) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip sync --quiet --python $(BIN)/python requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

# Writes requirements.lock anew from pyproject.toml: pins only, for every platform.
lock: $(STAMP)
	@$(BIN)/uv pip compile --quiet pyproject.toml --group dev --universal --python-version 3.11 \
		--no-header --no-annotate --output-file requirements.lock

clean:
	rm -rf $(VENV) .cache build *.egg-info
