# Everything here needs only Python 3.11 or newer with pip and venv; a second call does only what is left to do.
#   make demo      the whole of it on this machine: embedded broker and Redis, a simulated stream, a report
#   make test      every test once
#   make chaos     kills daemons a thousand times (KILLS=1000, SEED=) and says what came of it
#   make fuzz      a million mutated records, a hundred thousand damaged checkpoints (RECORDS=, CHECKPOINTS=, SEED=)
#   make faults    every fault of the schedule on real servers, and its table into docs/reliability.md
#   make check     format, lint, types and the fast tests, as before each commit
#   make install   headwater and what it needs in .venv, nothing else
#   make bench     the benchmarks
#   make lock      pin anew, the newest of everything
#   make clean     remove what these targets made (never ./var/headwater, a daemon's state)

.DEFAULT_GOAL := help
.PHONY: help install demo test chaos fuzz faults lint check bench lock clean

PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11 python,$(shell \
	$(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL = $(BIN)/python -m pip install -qq --disable-pip-version-check -c requirements.lock
SOURCES := $(wildcard streams/*.py models/*.py service/*.py)
BENCHMARKS ?= decode poll publish
KILLS ?= 1000
RECORDS ?= 1000000
CHECKPOINTS ?= 100000
# The fast tests leave out these markers of pyproject.toml.
FAST := not slow and not servers

help:
	@sed -n 's/^#   \(make .*\)/\1/p' $(firstword $(MAKEFILE_LIST))

install: $(VENV)/.installed

demo: $(VENV)/.demo
	$(BIN)/headwater demo $(DEMO_ARGS)

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

chaos: $(VENV)/.test
	$(BIN)/python -m tests.chaos --kills $(KILLS) $(if $(SEED),--seed $(SEED))

fuzz: $(VENV)/.test
	$(BIN)/python -m tests.fuzz --records $(RECORDS) --checkpoints $(CHECKPOINTS) $(if $(SEED),--seed $(SEED))

lint: $(VENV)/.test
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

check: lint
	$(BIN)/python -m pytest -m "$(FAST)" $(PYTEST_ARGS)

faults: $(VENV)/.test
	$(BIN)/python -m tests.faults --write $(FAULTS_ARGS)

bench: $(VENV)/.test
	@set -e; for name in $(BENCHMARKS); do echo "== benchmarks/$$name.py"; $(BIN)/python -m benchmarks.$$name; done

# The newest versions that pyproject.toml allows, made in an environment that no pin holds back.
lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install -qq --disable-pip-version-check '.[test,bench]'
	{ sed -n '/^#/p' requirements.lock; build/lock/bin/python -m pip freeze --all | \
		sed -E '/^(#|pip==|headwater)/d; s/\+.*//'; } >build/requirements.lock
	mv build/requirements.lock requirements.lock

clean:
	rm -rf $(VENV) build dist *.egg-info var/demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find streams models service tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer found; install one, or say which: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "make: $(PYTHON) cannot make a virtual environment; install its venv package" >&2; exit 1; }

# A copy, as a user would install it, which is made anew when the sources change …
$(VENV)/.installed: pyproject.toml requirements.lock $(SOURCES) | $(BIN)/python
	@echo "installing into $(VENV); the first time takes a few minutes"
	$(PIP_INSTALL) .
	@rm -f $(VENV)/.demo $(VENV)/.test
	@touch $@

# … or the sources themselves, so that what is tested or shown is what stands here. Each undoes the other.
$(VENV)/.demo: pyproject.toml requirements.lock | $(BIN)/python
	@echo "installing into $(VENV); the first time takes a few minutes"
	$(PIP_INSTALL) -e '.[demo]'
	@rm -f $(VENV)/.installed
	@touch $@

$(VENV)/.test: pyproject.toml requirements.lock | $(BIN)/python
	@echo "installing into $(VENV); the first time takes a few minutes"
	$(PIP_INSTALL) -e '.[test,bench]'
	@rm -f $(VENV)/.installed
	@touch $@ $(VENV)/.demo
