# `make demo` and `make test` set everything up by themselves; see README.md.
SHELL := /usr/bin/env bash
.DEFAULT_GOAL := help
PY := .venv/bin/python
# Hundreds of processes are started, each importing thousands of modules: compiled once, whatever the machine's default.
unexport PYTHONDONTWRITEBYTECODE
# Much of the suite waits (for kills to be noticed, for leases to end): three processes keep two cores busy.
PYTEST := $(PY) -m pytest -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: help setup demo test test-full check format bench lock clean

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## .venv from the pinned lock (does nothing when it is up to date)
	@infra/dev/setup.sh

demo: setup ## the whole path here: drop folder, Prefect, S3 and EC2 on the loopback, real vLLM, losses, report
	@$(PY) -m shuntserve.cli.demo

test: setup ## the suite: real vLLM on the CPU, an S3 server, SIGKILLs
	@$(PYTEST) -m "not soak"

test-full: setup ## the suite and its longer runs
	@$(PYTEST)

check: setup ## format, lint, types, import layers
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports

format: setup ## format and fix what can be fixed by itself
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

bench: setup ## measurements, as JSON lines (minutes)
	@for program in ingest overhead store hetero; do $(PY) tests/bench/$$program.py --json || exit 1; done
	@$(PY) tests/bench/planner.py --json --quick

# Locks name packages and versions only: no path, no index. They hold for Linux and macOS, Python 3.11 to 3.13.
# laptop: plan and submit.  gpu: a node (no Prefect).  dev: CPU engine, Prefect, tests.
COMPILE := infra/dev/setup.sh uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --no-annotate \
	--no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' --overrides infra/locks/overrides.txt
lock: ## compile the pinned locks anew (UPGRADE=--upgrade for newer versions)
	$(COMPILE) $(UPGRADE) --extra cpu --extra aws --extra flows --extra dev \
		$(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS),--torch-backend cpu) --output-file infra/locks/dev.txt
	$(COMPILE) $(UPGRADE) --extra gpu --extra aws --output-file infra/locks/gpu.txt
	$(COMPILE) $(UPGRADE) --extra aws --constraints infra/locks/dev.txt --output-file infra/locks/laptop.txt

clean: ## remove .venv and everything made
	rm -rf .venv .uv demo build dist .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
