# Few targets; CI calls `make test`, `make test-slow` and `make bench-check`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# Tests start many interpreters. Each would compile the project again where the environment forbids to keep the result.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo up test test-slow test-long coverage lint faults bench bench-check compose-check dist clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 12), "Python 3.11 or 3.12 is needed; set PYTHON="'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)  ## A real model from a file to answers, one version forward, and back
	$(BIN)/tritonctl demo

up: $(STAMP)  ## Everything on this machine: Triton, registry, API
	$(BIN)/tritonctl up

# Most tests wait more than they compute, so there are more workers than cores. A file's tests share their servers.
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
WORKERS ?= 4

# Failed tests run again, alone.
AGAIN = { [ $$? = 1 ] && $(BIN)/python -m tests.again; }
SELECT = $(if $(LONG),,-m "not slow and not long")

test: lint  ## All checks, and the tests that a person waits for; with LONG=1 all tests
	$(PYTEST) --cache-clear $(SELECT) $(ARGS) || $(AGAIN)

test-slow: $(STAMP)  ## The tests that take minutes: whole stories, servers killed and started again
	$(PYTEST) --cache-clear -m "slow and not long" $(ARGS) || $(AGAIN)

test-long: $(STAMP)  ## The rest of the tests: soaks, hundreds of repetitions, kills
	$(PYTEST) -m long $(ARGS)

coverage: $(STAMP)  ## What the tests cover
	$(PYTEST) --cov --cov-report=term $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m docs.check_language

faults: $(STAMP)  ## The long version of the fault suite, or parts of it: make faults PARTS="store planes"
	$(BIN)/python -m tests.faults $(PARTS)

bench: $(STAMP)  ## All benchmarks, or one: make bench NAME=rollback
	$(BIN)/python -m benchmarks $(NAME)

compose-check: $(STAMP)  ## docker-compose.yml from nothing, in a Docker of its own (root, Debian; installs docker.io)
	$(BIN)/python -m tests.compose

dist: $(STAMP)  ## Wheel and sdist into dist/, checked in fresh environments, with the demo; some minutes
	$(BIN)/python -m tests.wheel

bench-check: $(STAMP)  ## The short benchmarks against benchmarks/ceilings.toml; fails with what fell short
	$(BIN)/python -m benchmarks.check $(NAME)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis benchmarks/results
