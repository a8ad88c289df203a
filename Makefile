# The verbs of this project, the same for people and for CI. Nothing is needed but make and Python 3.11 or later;
# nothing is kept outside .venv and the user's cache folder.

SHELL := /bin/bash
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
ARGS ?=
SEED ?= 1
ROUNDS ?= 25
KERNEL_TESTS := $(wildcard tests/test_kernels*.py) $(addprefix tests/test_,exact_kernels.py codecs_scan.py common_rows.py decay.py)

.PHONY: help demo test test-containers faults servers lint coverage bench docs lock lock-kafka clean

help:          ## Show the verbs
	@grep -E '^[a-z-]+: .*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 17

demo: .venv/.installed        ## See it work on a real local Kafka      (ARGS="--seconds 30")
	$(BIN)/streamkm demo $(ARGS)

test: servers                 ## Run all tests                          (ARGS="-k stores")
	$(BIN)/python -m pytest $(ARGS)

faults: servers               ## Faults from a seed, and a count after  (SEED=1 ROUNDS=25)
	STREAMKM_FAULTS_SEED=$(SEED) STREAMKM_FAULTS_ROUNDS=$(ROUNDS) $(BIN)/python -m pytest tests/faults $(ARGS)

test-containers: servers       ## Run the tests that need Docker         (it is installed and started where there is none)
	tests/containers/run.sh $(ARGS)

# What tests need besides Python: PostgreSQL's programs, a browser, and Kafka.
servers: .venv/.installed
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null || [ -n "$$STREAMKM_TEST_POSTGRES" ] || \
		$(MAKE) --no-print-directory debian-postgres
	@[ -n "$$STREAMKM_TEST_CHROMIUM" ] || command -v chromium >/dev/null || command -v chromium-browser >/dev/null || \
		command -v google-chrome >/dev/null || $(MAKE) --no-print-directory debian-chromium
	$(BIN)/streamkm broker --prepare

lint: .venv/.installed        ## Check style, types, layers and unused code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/vulture
	$(BIN)/vulture --config tests/vulture.toml

# Kernels run as plain Python, in which lines and branches can be counted. The functions that emit instructions for the compiler run
# when kernels are compiled, so a few tests run compiled, with a cache that is empty.
coverage: .venv/.installed    ## Count the kernels' lines and branches that tests reach (at least 95 %, and 85 % of each file)
	$(BIN)/coverage erase
	PYTHONPATH=tests NUMBA_DISABLE_JIT=1 $(BIN)/coverage run -m pytest -q -p interpreted $(KERNEL_TESTS)
	cache=$$(mktemp -d); trap "rm -r $$cache" EXIT; \
		NUMBA_CACHE_DIR=$$cache $(BIN)/coverage run -m pytest -q -m instructions $(KERNEL_TESTS)
	$(BIN)/coverage combine -q
	$(BIN)/coverage report
	$(BIN)/coverage json -q -o - | $(BIN)/python scripts/check_coverage.py 85

bench: .venv/.installed       ## Measure against scikit-learn and river, side by side
	$(BIN)/python benchmarks/learn.py
	$(BIN)/python benchmarks/throughput.py

docs: .venv/.installed        ## Write the generated parts of the docs anew
	$(BIN)/python -m consumers.docs

lock: .venv/.installed        ## Choose the newest versions that fit, and pin them with their hashes
	$(BIN)/uv pip compile pyproject.toml --extra broker --extra arrow --extra postgres --group test --group lint --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-header --upgrade --quiet --output-file requirements.lock

lock-kafka: .venv/.installed  ## Pin the jars of a version of Kafka     (VERSION=4.1.1)
	$(BIN)/python scripts/lock_kafka.py $(VERSION)

clean:         ## Remove what the verbs made
	rm -rf .venv dist .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis

# uv installs the locked packages ten times as fast as pip does, and checks the same hashes.
.venv/.installed: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or later found: install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || $(MAKE) --no-print-directory debian-venv
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.7,<1'
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

# Debian and Ubuntu keep venv in a package of its own.
.PHONY: debian-venv
debian-venv:
	@command -v apt-get >/dev/null || { echo "$(PYTHON) has no venv module: install it" >&2; exit 1; }
	@sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; version=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	$$sudo apt-get update -qq && $$sudo apt-get install -y -qq "python$$version-venv"

# Tests start a server of their own from it. The one that Debian may start beside it is left alone.
.PHONY: debian-postgres
debian-postgres:
	@sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	{ command -v apt-get && $$sudo true; } >/dev/null || { echo "Tests need PostgreSQL's server programs: install them (apt-get install" \
		"postgresql), or name a server: STREAMKM_TEST_POSTGRES=postgresql://user:password@host/postgres" >&2; exit 1; }; \
	$$sudo apt-get update -qq && $$sudo apt-get install -y -qq --no-install-recommends postgresql

.PHONY: debian-chromium
debian-chromium:
	@sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	{ command -v apt-get && $$sudo true; } >/dev/null || { echo "Tests of the page need Chromium: install it (apt-get install chromium)," \
		"or name one: STREAMKM_TEST_CHROMIUM=/path/to/chromium" >&2; exit 1; }; \
	$$sudo apt-get update -qq && $$sudo apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core
