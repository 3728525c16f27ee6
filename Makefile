# What there is to do in a checkout: `make help`. Everything goes into .venv and build/.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# The first python that is new enough; `make PYTHON=/path/to/python …` overrules it.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$p && break; done)
# Two files at a time; `make test PARALLEL=` runs one after the other.
PARALLEL ?= -n 2 --dist loadfile
PYTEST_ARGS ?=
BENCH_ARGS ?=
COMPAT_ARGS ?=

LOCKED := --quiet --require-hashes --requirement
# What `make newest` and `make lowest` run: the tests that need no llama-server.
QUICK := tests/unit tests/proxy tests/ollama tests/imports tests/hub
# What touches no machine, and so runs where there is no /proc: the scheduler, the file, the parsers.
PORTABLE := tests/scheduler tests/simulator tests/ollama tests/unit/test_config_*.py \
	tests/unit/test_gguf_*.py tests/unit/test_import*.py tests/unit/test_units.py \
	tests/unit/test_output.py tests/unit/test_failures.py tests/unit/test_docs_*.py

.PHONY: help demo serve engine engine-vulkan test quick portable needs lint format wheel compat bench
.PHONY: lock newest lowest dist release-check clean

help: ## say what there is to do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.run ## two tiny models, one port, memory for one: watch them swap (KEEP=1 goes on serving)
	@$(BIN)/lswap demo --build $(if $(KEEP),--keep)

serve: $(VENV)/.run ## the same, and go on serving until Ctrl-C
	@$(BIN)/lswap demo --build --keep

engine: $(VENV)/.run ## build llama-server if there is none
	@$(BIN)/lswap engine doctor >/dev/null || $(BIN)/lswap engine build

# It lies where `engine: auto` does not find it: tests/device_engine.py.
engine-vulkan: $(VENV)/.dev ## build the llama-server with Vulkan and RPC that tests of devices use
	@$(BIN)/python -m tests.device_engine

# All of it runs, whatever fails first; pytest comes last, and with it the list of what was missing.
test: $(VENV)/.dev needs ## everything: style, types, the wheel, all tests with a real llama-server
	@failed=; \
	$(MAKE) --no-print-directory lint || failed+=' lint'; \
	$(MAKE) --no-print-directory wheel || failed+=' wheel'; \
	$(MAKE) --no-print-directory engine || \
		echo 'no llama-server: the tests that need it are skipped, and named last'; \
	$(MAKE) --no-print-directory engine-vulkan || \
		echo 'no llama-server with Vulkan and RPC: the tests that need it are skipped, and named last'; \
	! command -v npm >/dev/null || $(BIN)/lswap engine build --ui || \
		echo 'no web UI: the tests that need it are skipped, and named last'; \
	$(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGS) || failed+=' pytest'; \
	[ -z "$$failed" ] || { echo "failed:$$failed" >&2; exit 1; }

quick: $(VENV)/.dev ## the tests that need no llama-server (some are skipped without one)
	$(BIN)/python -m pytest $(PARALLEL) $(if $(PYTEST_ARGS),$(PYTEST_ARGS),$(QUICK))

portable: $(VENV)/.dev ## the tests of what touches no machine: they run on macOS, too
	$(BIN)/ruff check
	$(BIN)/python -m pytest $(PARALLEL) $(if $(PYTEST_ARGS),$(PYTEST_ARGS),$(PORTABLE))

# Said first, because the tests take a quarter of an hour.
needs: $(VENV)/.dev
	@$(BIN)/python -m tests.needs

lint: $(VENV)/.dev ## style and types, these for Linux and macOS
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy --platform darwin --cache-dir .mypy_cache/darwin

format: $(VENV)/.dev ## put the code into shape
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# What people get from `pip install`: it must run without the checkout, and carry the build script.
wheel: $(VENV)/.dev ## build the wheel, and try it in an empty environment
	@rm -rf build/wheel && mkdir -p build/wheel
	$(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
	$(BIN)/python -m venv build/wheel/env
	build/wheel/env/bin/python -m pip install $(LOCKED) requirements/run.txt
	build/wheel/env/bin/python -m pip install --quiet --no-deps build/wheel/*.whl
	build/wheel/env/bin/python -m pip check
	@cd build/wheel && set -x && env/bin/lswap --help >/dev/null && env/bin/lswap --version && \
		env/bin/lswap engine list && env/bin/lswap engine build --dry-run >/dev/null && \
		env/bin/lswap report - >/dev/null
	@# With a llama-server the demo must run, and without one say how to get it.
	@cd build/wheel && export XDG_CACHE_HOME=$$PWD/cache; \
	if env/bin/lswap engine doctor >/dev/null; then set -x; env/bin/lswap demo; \
	else set -x; ! env/bin/lswap demo 2>demo.txt; grep 'lswap demo --build' demo.txt; fi

compat: $(VENV)/.dev ## lswap's basics with four builds of llama.cpp, and llama.cpp's own server tests (1 hour)
	@$(BIN)/lswap engine doctor >/dev/null || $(BIN)/lswap engine build
	$(BIN)/python -m tests.compat --write docs/compatibility.md $(BUILDS)
	$(BIN)/python -m tests.upstream --write docs/compatibility.md $(COMPAT_ARGS)

bench: $(VENV)/.dev ## every target beside its peers (15 minutes; BENCH_ARGS='relay swap', '--quick', ...)
	@$(BIN)/lswap engine doctor >/dev/null || $(BIN)/lswap engine build
	$(BIN)/python -m bench $(BENCH_ARGS)

# --- other releases of what lswap uses ---------------------------------------------------------------

# One resolution for Python 3.11 to 3.14; what lswap needs is a part of it.
LOCK := build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --custom-compile-command 'make lock' pyproject.toml --group build

lock: build/lock ## resolve the newest releases anew into requirements/*.txt
	$(LOCK) --upgrade --group dev --output-file requirements/dev.txt
	$(LOCK) --upgrade --constraint requirements/dev.txt --output-file requirements/run.txt

newest: RESOLUTION := highest
newest: ## the tests that need no llama-server, with the newest releases of everything
lowest: RESOLUTION := lowest-direct
lowest: ## the same with the oldest releases that pyproject.toml allows
newest lowest: build/lock
	@rm -rf build/$@ && build/lock/bin/uv venv --quiet --python $(PYTHON) build/$@
	@build/lock/bin/uv pip install --quiet --python build/$@/bin/python --resolution $(RESOLUTION) \
		--editable . --group dev
	build/$@/bin/python -m pytest -p no:cacheprovider $(if $(PYTEST_ARGS),$(PYTEST_ARGS),--quiet $(QUICK))

build/lock: | $(VENV)/.made
	@$(PYTHON) -m venv --clear $@ && $@/bin/python -m pip install --quiet 'uv>=0.5' || { rm -rf $@; exit 1; }

# --- a release ---------------------------------------------------------------------------------------

dist: $(VENV)/.dev ## build the wheel and the source archive into dist/
	@rm -rf dist
	$(BIN)/python -m hatchling build

release-check: $(VENV)/.dev # TAG=vX.Y.Z: whether the version and the change log say so, too
	$(BIN)/python scripts/check_release.py '$(TAG)'

clean: ## remove what was made here; engines stay where `lswap engine list` shows them
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the environment: installed anew when the lock files change -------------------------------------

# The package itself is built with what the lock files brought along, so nothing else is asked for.
SELF := --quiet --no-deps --no-build-isolation --editable .

$(VENV)/.run: requirements/run.txt pyproject.toml | $(VENV)/.made
	@echo "installing lswap into $(VENV)"
	@$(PIP) install $(LOCKED) requirements/run.txt
	@$(PIP) install $(SELF)
	@touch $@

$(VENV)/.dev: requirements/dev.txt pyproject.toml | $(VENV)/.made
	@echo "installing lswap and what the tests need into $(VENV)"
	@$(PIP) install $(LOCKED) requirements/dev.txt
	@$(PIP) install $(SELF)
	@touch $@ $(VENV)/.run

$(VENV)/.made:
	@[ -n '$(PYTHON)' ] || { echo 'error: lswap needs Python 3.11 or newer - install it, or: make PYTHON=/path/to/python …' >&2; exit 1; }
	@$(PYTHON) -c '$(NEW_ENOUGH)' || { echo 'error: $(PYTHON) is older than Python 3.11' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo 'error: $(PYTHON) cannot make virtual environments - apt-get install python3-venv' >&2; exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@
