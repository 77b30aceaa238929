# Everything runs in its own environment, made on the first call and reused as long as the pins do not change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TASK ?= classification

.PHONY: setup demo test test-faults test-package test-upstream lint format docs

setup: $(READY)

$(READY): requirements.txt constraints.txt pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo 'error: Python 3.11, 3.12 or 3.13 is needed: call make PYTHON=/path/to/python3.11' >&2; exit 2; }
	@echo 'Setting up $(VENV): 2 to 3 minutes, once.'
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/pip install --no-input --disable-pip-version-check --progress-bar off -r requirements.txt -c constraints.txt
	@$(BIN)/pip install -q --no-input --disable-pip-version-check --no-deps -e .
	@touch $@

demo: $(READY)
	@PATH="$(abspath $(BIN)):$$PATH" tools/run_demo.sh $(TASK)

# What failed runs once more, by itself: a test that kills, waits or races may lose to whatever else took its core. The
# first report stands above the second, and a test that fails twice fails.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
AGAIN = || { [ $$? -eq 1 ] && echo 'Once more, by itself, what failed:' && $(PYTEST) --last-failed --last-failed-no-failures none $(1); }

# worksteal gives either process tests that stand together, so that what a file builds once is built once.
#
# With DEVICE=cuda those that are about tensors alone run, on a GPU; with DEVICE=stand-in on a device that refuses, as a
# GPU does, tensors of two devices in one operator.
DEVICE ?= cpu
TENSORS := tests/test_stand_in.py tests/test_synthesis.py tests/layers/test_layers.py tests/layers/test_variants.py \
	tests/test_unusual_networks.py
ifneq ($(DEVICE),cpu)
test: $(READY)
	@DEVICE=$(DEVICE) $(PYTEST) $(TENSORS)
else
test: $(READY)
	@$(PYTEST) -n 2 --dist worksteal --ignore=tests/faults --ignore=tests/package \
		$(call AGAIN,--ignore=tests/faults --ignore=tests/package)
endif

test-faults: $(READY)
	@$(PYTEST) -n 2 tests/faults $(call AGAIN,tests/faults)

# The classic OpenMMLab libraries and an older torch, in an environment of their own, which takes 6 GB.
UPSTREAM := .venv-upstream
$(UPSTREAM)/.ready: requirements-upstream.txt pyproject.toml setup.py
	@echo 'Setting up $(UPSTREAM): 3 to 5 minutes, once.'
	@$(PYTHON) -m venv --clear $(UPSTREAM)
	@$(UPSTREAM)/bin/pip install -q --no-input --disable-pip-version-check -r requirements-upstream.txt
	@$(UPSTREAM)/bin/pip install -q --no-input --disable-pip-version-check --no-deps -e .
	@touch $@

test-upstream: $(UPSTREAM)/.ready
	@OMP_NUM_THREADS=1 $(UPSTREAM)/bin/python -m pytest -n 2 --dist worksteal -o cache_dir=$(UPSTREAM)/.pytest_cache \
		tests/test_sites.py tests/test_synthesis.py tests/test_surgery.py tests/test_compat.py tests/layers \
		tests/backbones/test_backbones.py tests/backbones/test_dense.py tests/engine/test_checkpoints.py \
		tests/engine/test_long_runs.py tests/cli/test_tools.py tests/cli/test_saved_predictions.py

# Wheel and sdist, installed elsewhere.
test-package: $(READY)
	@$(PYTEST) tests/package

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(READY)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# The site, in docs/_build/html; a warning is an error.
docs: $(READY)
	@$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html
	@echo 'The first page is docs/_build/html/index.html'
