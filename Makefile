# Everything runs in .venv, which is made on first use. PYTHON=... chooses the interpreter (3.11 or newer) that makes it.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check
TEST_PROCESSES ?= 2
SELECTED ?= -m "not slow"

# what rests on equal bits: identity at the start, resumed runs, killed sweeps, kept features, predictions that equal
BITS := tests/training/test_arithmetic.py tests/peft/test_promises.py tests/models/test_pixel_decoder_split.py \
	tests/training/test_trainer.py tests/training/feature_cache/test_loader.py tests/engine/test_train.py tests/engine/test_features.py \
	tests/sweep/test_processes.py
BITS_TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) $(BITS)

.PHONY: quickstart test test-all test-other-cpu test-browser test-postgresql lint check format clean

quickstart: $(READY)  ## fine-tune the bundled base on the CPU by four methods and compare them
	$(BIN)/vispeft quickstart

test: $(READY)  ## tests without those that take long and are covered more coarsely by others: a few minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) $(SELECTED)

test-all:  ## every test
	$(MAKE) test SELECTED=

test-other-cpu: $(READY)  ## promises of equal bits on the instructions of other processors: AVX2, AVX-512, none of both
	ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 $(BITS_TEST)
	! grep -qw avx512bw /proc/cpuinfo 2>/dev/null || ATEN_CPU_CAPABILITY=avx512 MKL_ENABLE_INSTRUCTIONS=AVX512 \
		ONEDNN_MAX_CPU_ISA=AVX512_CORE $(BITS_TEST)
	# MKL's compatible kernels depend on an image's place in its batch, which features kept for later batches cannot know
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE $(BITS_TEST) \
		--deselect tests/models/test_pixel_decoder_split.py::test_tail__continues_to_the_bit

# -rs names what is not installed: a skipped test has proven nothing
test-browser: $(VENV)/.ready-browser  ## the reports in headless Chromium (apt-get install chromium)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs tests/report/test_browser.py

test-postgresql: $(READY)  ## sweeps over a PostgreSQL server of the tests' own (apt-get install postgresql)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs tests/sweep/test_locks.py tests/sweep/test_processes.py \
		tests/sweep/test_study.py -k "postgresql or killed_workers"

lint: $(READY)  ## format, style, types, layers
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test  ## what must pass before each commit; .ci/run runs every test and those on other processors too

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
	$(PIP) install -e ".[dev]"
	touch $@

$(VENV)/.ready-browser: $(READY)
	$(PIP) install -e ".[browser]"
	touch $@
