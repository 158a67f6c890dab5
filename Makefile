# Everything the project does with itself; CI calls only these.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup demo bench browser test test-all faults check format clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: .venv/.dev  ## set up .venv with all that developers need

demo: .venv/.user  ## teacher, student alone and seven methods on digits: one table and a report, half a minute to two
	@$(BIN)/distillab demo

bench: .venv/.user  ## the classic training loop and our own, in turns: one table, within five minutes
	@$(BIN)/distillab bench

browser:  ## Debian's Chromium for the report's tests, where it is missing and apt is ours; without one they are skipped
	@if ! command -v chromium >/dev/null && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	    chromium fonts-dejavu-core >/dev/null || echo "Chromium could not be installed: no tests in a browser." >&2; \
	fi

test: .venv/.dev  ## the tests: a few minutes on two cores
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: .venv/.dev  ## the slow tests too, and those of a GPU where there is one
	$(BIN)/python -m pytest -n 2 --dist loadfile -m ""

faults: .venv/.dev  ## runs are killed, interrupted, raced for and starved of disk: one table, about ten minutes
	@PYTHONPATH=tests $(BIN)/python -m faults

check: .venv/.dev  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/.dev  ## put the format right
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove what setup, tests and tools made; runs and data stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis

# constraints.txt pins versions that are known to work together; the package itself declares ranges.
.venv/.user: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; say which: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/.dev: .venv/.user
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@
