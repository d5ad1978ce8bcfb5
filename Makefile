# Everything a person does with a checkout: serve, test, lint, format, clean. Each installs what it needs first.
#
#   make serve ARGS="--port 9000"        make test ARGS="tests/unit -k docs"

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
ARGS   ?=
# Slow tests run where time is not a person's: with CI=true.
SLOW   := $(if $(filter true,$(CI)),,-m "not slow")

.DEFAULT_GOAL := help
.PHONY: help serve test lint format docs bench train-smoke constraints clean

help:
	@echo "make serve | test | lint | format | docs | bench | train-smoke | constraints | clean    (ARGS=... is passed on)"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Onestep needs Python 3.11 or newer")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (only after pyproject.toml or constraints.txt has changed)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

serve: $(STAMP)
	@exec $(BIN)/onestep serve $(ARGS)

test: $(STAMP)
	@$(BIN)/python -m pytest $(SLOW) $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The README's tables, from the code.
docs: $(STAMP)
	@$(BIN)/python docs/tables.py

# Every workload against the bundled model, on an idle machine: docs/09-performance.md says how to read it.
bench: $(STAMP)
	@$(BIN)/python -m benchmarks.run $(ARGS)

# The training recipe in miniature: render, train, tune, evaluate, save, serve a picture. Needs node and npm.
train-smoke: $(STAMP)
	@$(BIN)/python -m training.smoke

# Writes down the versions of this environment as the ones known to work together. A local part (`+cpu`) is
# left out: which build of torch is installed is the installer's choice.
# Triton's version is for torch to choose: its builds for GPUs want one of their own.
constraints: $(STAMP)
	@{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable --exclude triton | sed 's/+[a-z0-9.]*$$//'; } > constraints.new
	@mv constraints.new constraints.txt && touch $(STAMP)

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -not -path './node_modules/*' -prune -exec rm -rf {} +
