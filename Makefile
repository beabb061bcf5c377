# Everything runs in .venv, which is made on first use. PYTHON=... chooses the interpreter (3.11 or newer) that makes it.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check
CPU_INDEX := https://download.pytorch.org/whl/cpu
TEST_PROCESSES ?= 2

.PHONY: quickstart test lint check format clean

quickstart: $(READY)  ## fine-tune the bundled base on the CPU by four methods and compare them
	$(BIN)/vispeft quickstart

test: $(READY)  ## unit tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES)

lint: $(READY)  ## format, style, types, layers
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test  ## what must pass before each commit

format: $(READY)  ## rewrite the files in house style
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean:  ## remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

# Debian's python3 without python3-venv has pip but no ensurepip: then the outer pip fills the environment.
$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: install it, or name it with PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --without-pip $(VENV) && \
		$(PYTHON) -m pip --python $(BIN)/python install pip; }
	@command -v nvidia-smi > /dev/null || $(MAKE) --no-print-directory cpu-torch
	@$(PIP) freeze | grep -i '^torch==' > $(VENV)/constraints.txt || true
	$(PIP) install -c $(VENV)/constraints.txt -e ".[dev]"
	touch $@

# Without an NVIDIA GPU, torch's CPU build does the same at a tenth of the download: from a local folder of wheels that pip is
# set up to look in, or from PyTorch's own index. Where there is neither, the build of the default index serves as well.
.PHONY: cpu-torch
cpu-torch:
	@$(PIP) install --quiet --no-deps --no-index torch 2> /dev/null || \
		$(PIP) install --quiet --retries 0 --timeout 10 --no-deps --index-url $(CPU_INDEX) torch torchvision 2> /dev/null || true
