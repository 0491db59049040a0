# make demo    a generated task, end to end            make test    all tests but the slow ones (make test-slow)
# make lint    style, types, import layers             make bench   speed and memory against peers
# make docs    the documentation's pages, in site/     make wheel   build, check and try the package
# make address the repository's address from pyproject.toml into README, notebook and CITATION.cff
# make picture the README's picture of the demo's report; needs chromium
#
# Each target does the set-up it needs in .venv of this folder and reuses it afterwards.
# PYTHON chooses the interpreter (3.11 or newer), PIP_FLAGS adds flags to pip, ARGS to the command itself:
#   make test ARGS="-k config"    make demo ARGS="--seed 1"

PYTHON ?= python3
PIP_FLAGS ?=
ARGS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --progress-bar off -c constraints.txt $(PIP_FLAGS)

.PHONY: help demo picture test test-slow lint bench docs address wheel clean
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

demo: .venv/.installed
	$(BIN)/compact demo $(ARGS)

picture: demo
	mkdir -p docs/images
	chromium --headless --no-sandbox --hide-scrollbars --window-size=1200,1450 --virtual-time-budget=3000 \
		--screenshot=docs/images/report.png file://$(CURDIR)/runs/demo/study/arms/compact/seed-0/report.html

# One thread a worker, so that the two workers do not fight over two cores; a test file stays in one worker.
test: .venv/.installed-dev
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(ARGS)

# Soak tests, a real server: half an hour.
test-slow: .venv/.installed-dev
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -m slow $(ARGS)

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/.installed-bench
	$(BIN)/python benchmarks/step.py $(ARGS)

docs: .venv/.installed-dev
	NO_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict --quiet --site-dir site

address:
	$(PYTHON) docs/address.py

# The demo runs from the installed wheel, in an environment of its own and outside this folder.
wheel: .venv/.installed-dev
	rm -rf build dist
	$(BIN)/python -m build --no-isolation --outdir dist . >/dev/null
	$(BIN)/twine check --strict dist/*
	rm -rf .wheel-trial && $(PYTHON) -m venv .wheel-trial
	.wheel-trial/bin/python -m pip install --quiet --disable-pip-version-check --no-input --progress-bar off -c constraints.txt $(PIP_FLAGS) torch
	.wheel-trial/bin/python -m pip install --quiet --disable-pip-version-check --no-input --progress-bar off -c constraints.txt $(PIP_FLAGS) dist/*.whl
	cd .wheel-trial && env -u PYTHONPATH bin/compact demo --output demo $(ARGS)
	test -s .wheel-trial/demo/study/study.html
	rm -rf .wheel-trial

clean:
	rm -rf build dist site .wheel-trial .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests benchmarks examples -name __pycache__ -prune -exec rm -rf {} +

# torch comes first and alone: without its pin pip may start to fetch the newest one with all of CUDA.
.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "compact-distill needs Python 3.11 or newer, got %d.%d; set PYTHON=python3.11" % v[:2])'
	@echo "Setting up .venv; the first time takes some minutes."
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@$(PIP) setuptools torch
	@$(PIP) --no-build-isolation -e .
	@touch $@

.venv/.installed-dev: .venv/.installed
	@$(PIP) --no-build-isolation -e '.[dev]'
	@touch $@

.venv/.installed-bench: .venv/.installed
	@$(PIP) --no-build-isolation -e '.[bench]'
	@touch $@
