# Two commands matter: `make cook` runs the main job, `make test` runs the tests.
# Both set up .venv themselves; nothing else is touched.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DEV    := $(VENV)/.ready-dev
PIP    := $(BIN)/python -m pip --disable-pip-version-check
OUT    ?= runs/village
MINUTES ?= 10

.PHONY: cook test test-all check format bench docs chapters chat clean help

help:            ## say what each target does
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "stockpot needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing stockpot into $(VENV) (once; torch is the large part) ..." >&2
	@$(PIP) install --quiet -c constraints.txt -e .
	@touch $@

$(DEV): $(READY)
	@echo "Installing what the tests and checks need (once) ..." >&2
	@$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

cook: $(READY)   ## village, tokenizer, pretraining, instruction tuning, DPO, PPO, evaluation, report
	@$(BIN)/stockpot cook --minutes $(MINUTES) --out $(OUT)

chat: $(READY)   ## talk to the model that `make cook` made, or else to SmolLM2 (98 MB, fetched once)
	@if [ -f $(OUT)/offered ]; then $(BIN)/stockpot chat $(OUT)/$$(cat $(OUT)/offered); \
	else $(BIN)/stockpot pull smollm2 >/dev/null && $(BIN)/stockpot chat smollm2; fi

test: $(DEV)   ## the default tests (no network, no GPU), two files at a time
	@$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: $(DEV)  ## slow tests too
	@$(BIN)/python -m pytest -m "not gpu and not network"

check: $(DEV)  ## format, lint, types, architecture
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(DEV) ## rewrite files in the project's format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(DEV)  ## say which benchmarks and peers are present
	@$(BIN)/python benchmarks/peers.py

docs: $(DEV)   ## build the documentation into site/
	@$(PIP) install --quiet -c constraints.txt -e '.[docs]'
	@$(BIN)/mkdocs build --strict

chapters: $(DEV)  ## run the lecture's chapters; renew their outputs, charts and notebooks
	@$(BIN)/python docs/chapters.py

clean:           ## remove the environment and build leftovers (runs stay)
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache src/*.egg-info
