# The two commands of the README, and what else is run often. Everything happens in .venv; nothing outside it is touched.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: run test lint types check bench torture sanitize clean

run: $(STAMP)-examples
	$(BIN)/python examples/flights.py

test: $(STAMP)-test lint types
	$(BIN)/python -m tests.side_by_side

lint: $(STAMP)-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)-test
	$(BIN)/mypy

bench: $(STAMP)-test $(STAMP)-bench
	$(BIN)/python -m tests.bench $(ARGS)

# Kills at random, and all failpoints. The seed is printed; with it, the same again.
KILLS        ?= 1000
SYSTEM_KILLS ?= 100
SEED         ?= $(shell echo $$$$)
torture: $(STAMP)-test
	$(BIN)/python -m tests.torture --kills $(KILLS) --system-kills $(SYSTEM_KILLS) --seed $(SEED)
	$(BIN)/python -m tests.torture.failpoints --seed $(SEED)

sanitize: $(STAMP)-test
	$(BIN)/python -m tests.bus.sanitize

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis bus/*.so $(VENV)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# An extra is installed again when the project's metadata or its C changed.
$(STAMP)-%: $(BIN)/python pyproject.toml setup.py $(wildcard bus/*.[ch])
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@
