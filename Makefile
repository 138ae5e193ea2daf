# The two commands of the README, and what else is run often. Everything happens in .venv; nothing outside it is touched.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: run test lint types check bench bench-compare bench-plots torture sanitize clean

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

# This checkout next to another revision, in turns.
bench-compare: $(STAMP)-test
	@test -n "$(BASE)" || { echo "error: what with? make bench-compare BASE=REVISION"; exit 2; }
	$(BIN)/python -m tests.bench.compare $(BASE) $(ARGS)

# The plots of the README, of the newest record in bench-results or of RESULTS=FILE.
bench-plots: $(STAMP)-test $(STAMP)-bench
	$(BIN)/python -m tests.bench.plots $(RESULTS)

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

# Peers come one by one: what cannot be installed here (no wheel, no compiler) is left out, and its rows say so.
PEERS = import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["bench"])
$(STAMP)-bench: $(BIN)/python pyproject.toml
	@for peer in $$($(BIN)/python -c '$(PEERS)'); do \
		$(BIN)/python -m pip install --quiet "$$peer" || echo "$$peer cannot be installed here"; \
	done
	@touch $@

# An extra is installed again when the project's metadata or its C changed.
$(STAMP)-%: $(BIN)/python pyproject.toml setup.py $(wildcard bus/*.[ch])
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@
