# Everything runs in .venv, made on demand from requirements.lock. `make` lists the targets.
# A lock names every package, so pip is given --no-deps: what a package asks for is not asked again,
# where a newer release, wanted through an extra, would be one without a hash.

PYTHON ?= $(shell for p in python3.11 python3; do $$p -c '' 2>/dev/null && echo $$p && break; done)
UV     ?= .cache/lock/bin/uv
DIST   ?= dist

BIN       := .venv/bin
INSTALLED := .venv/.installed
PEERS     := .cache/bench/.installed
SPHINX    := .cache/docs/.installed
COVERAGE  := .cache/coverage/.installed
SITE      ?= .cache/docs/site
SEED      ?= 1
RESULTS   ?= .benchmarks/results.json
TYPED     := $(wildcard mandrake_sessions migrations benchmarks examples tests tools)
# Many tests wait more than they compute. A plain `pytest` runs them in one process.
TWICE     := --numprocesses auto --dist worksteal
PIP       := $(BIN)/python -m pip --quiet --disable-pip-version-check

MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:
.PHONY: help install demo test test-long coverage check lint types docstrings public-types layers words format docs bench \
	bench-full bench-brief bench-against bench-report lock wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(INSTALLED) ## make .venv with the locked tools and this checkout

$(INSTALLED): requirements.lock pyproject.toml
	@echo "make: installing the locked tools into .venv, about half a minute; later runs skip it" >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) install --require-hashes --no-deps -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

demo: $(INSTALLED) ## show the library at work
	@$(BIN)/python -m examples.demo

test: $(INSTALLED) ## run the tests, in two processes for each core
	@$(BIN)/python -m pytest $(TWICE)

test-long: $(INSTALLED) ## run all tests, the reliability tests at full length
	@$(BIN)/python -m pytest -m "long or not long" --campaign full

coverage: $(COVERAGE) ## run the tests with the newest Python, and print which lines they reach
	@.cache/coverage/bin/python -m tools.coverage .cache/coverage/bin/python -m pytest

$(COVERAGE): requirements.lock pyproject.toml | $(INSTALLED)
	@newest=$$($(BIN)/python -m tools.newest_python 3.12); \
	test -n "$$newest" || { echo "make: coverage needs Python 3.12 or newer" >&2; exit 1; }; \
	echo "make: installing the locked tools for $$newest into .cache/coverage, about half a minute" >&2; \
	rm -rf .cache/coverage && "$$newest" -m venv .cache/coverage
	@.cache/coverage/bin/python -m pip install --quiet --disable-pip-version-check \
		--require-hashes --no-deps -r requirements.lock
	@.cache/coverage/bin/python -m pip install --quiet --disable-pip-version-check \
		--no-deps --no-build-isolation -e .
	@touch $@

check: lint types layers words ## lint, format, types, layers, words

lint: $(INSTALLED) ## ruff: rules and format
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --diff .; exit 1; }

types: $(INSTALLED) ## mypy --strict; pyright, strict, of the methods and of a host's own code
	@$(BIN)/mypy $(TYPED)
	@out=$$($(BIN)/pyright) || { echo "$$out"; exit 1; }

docstrings: $(INSTALLED) ## print twenty docstrings, drawn at random: SEED=number
	@$(BIN)/python -m tools.docstrings $(SEED)

public-types: $(INSTALLED) ## pyright: the types of all public names are complete
	@$(BIN)/python -m tools.public_types

layers: $(INSTALLED) ## import-linter: who may import whom
	@out=$$($(BIN)/lint-imports --no-logo --cache-dir .cache/import-linter) || { echo "$$out"; exit 1; }

words: $(INSTALLED) ## print the words to avoid, with file, line and the term to use
	@$(BIN)/python -m tools.words

format: $(INSTALLED) ## mend what ruff can mend
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format --quiet .

bench: $(PEERS) ## compare with bare APSW and the peers; at most 10 minutes
	@.cache/bench/bin/python -m pytest -s benchmarks --results $(RESULTS)

bench-full: $(PEERS) ## the same with more and longer rounds, and a million turns
	@.cache/bench/bin/python -m pytest -s benchmarks --full --results $(RESULTS)

bench-brief: $(INSTALLED) ## show that the benchmarks work: a minute, no limit is held
	@$(BIN)/python -m pytest -s benchmarks --brief --results .benchmarks/brief.json

bench-against: $(INSTALLED) ## measure this checkout against another commit: BASE=COMMIT [ARGS=--help]
	@$(BIN)/python -m benchmarks.against $(ARGS) $(BASE)

bench-report: $(PEERS) ## write docs/benchmarks.md and its plots from the results
	@.cache/bench/bin/python -m benchmarks.report $(RESULTS)

$(PEERS): benchmarks/requirements.lock pyproject.toml
	@echo "make: installing what is measured into .cache/bench, about a minute; later runs skip it" >&2
	@test -x .cache/bench/bin/python || $(PYTHON) -m venv .cache/bench
	@.cache/bench/bin/python -m pip install --quiet --disable-pip-version-check \
		--require-hashes --no-deps -r benchmarks/requirements.lock
	@.cache/bench/bin/python -m pip install --quiet --disable-pip-version-check \
		--no-deps --no-build-isolation -e .
	@touch $@

docs: $(SPHINX) ## build the site of the documentation; a warning is an error
	@.cache/docs/bin/sphinx-build -b html -E -c docs -W -n --keep-going --quiet . $(SITE)
	@echo "make: $(SITE)/index.html" >&2

$(SPHINX): docs/requirements.lock pyproject.toml
	@echo "make: installing Sphinx into .cache/docs, about half a minute; later runs skip it" >&2
	@test -x .cache/docs/bin/python || $(PYTHON) -m venv .cache/docs
	@.cache/docs/bin/python -m pip install --quiet --disable-pip-version-check \
		--require-hashes --no-deps -r docs/requirements.lock
	@.cache/docs/bin/python -m pip install --quiet --disable-pip-version-check \
		--no-deps --no-build-isolation -e .
	@touch $@

.PHONY: generate sql faces
generate: sql faces ## write every module that is made from descriptions

sql: $(INSTALLED) ## compile the statements and tables that the library runs
	@$(BIN)/python -m tools.generate

faces: $(INSTALLED) ## write the methods of managers and transactions from the units
	@$(BIN)/python -m tools.generate.faces

wheel: $(INSTALLED) ## build the wheel into dist
	@$(PIP) wheel --no-deps --no-build-isolation --wheel-dir $(DIST) .

lock: $(UV) ## refresh the three files requirements.lock
	@$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
		--custom-compile-command "make lock" --extra cli --group dev \
		--output-file requirements.lock pyproject.toml
	@$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
		--custom-compile-command "make lock" --group bench \
		--output-file benchmarks/requirements.lock pyproject.toml
	@$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
		--custom-compile-command "make lock" --group docs \
		--output-file docs/requirements.lock pyproject.toml

.cache/lock/bin/uv:
	@$(PYTHON) -m venv .cache/lock
	@.cache/lock/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.13,<0.14'

clean: ## remove .venv, caches and what was built
	@rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks dist build
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
