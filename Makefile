# The same targets for people and for CI. Everything lives in .venv; nothing needs root.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-13s %s\n", $$1, $$2}'

$(INSTALLED): pyproject.toml annoris/__init__.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

install: $(INSTALLED)  ## Install Annoris and the tools for working on it into .venv

demo: $(INSTALLED)  ## Save and load real sessions, on a master of their own
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/demo.sh

test: $(INSTALLED) lint type  ## Lint, check types and layers, run every test
	$(BIN)/pytest -n 2

lint: $(INSTALLED)  ## Check style, rules and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

type: $(INSTALLED)  ## Check types, strictly
	$(BIN)/mypy

audit: $(INSTALLED)  ## Look for weak code, and for known holes in what is installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[audit]'
	$(BIN)/bandit --quiet --recursive annoris --configfile pyproject.toml
	$(BIN)/pip-audit --skip-editable --progress-spinner off

format: $(INSTALLED)  ## Mend what can be mended by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

coverage: $(INSTALLED)  ## Tests with branch coverage
	$(BIN)/pytest -n 2 --cov --cov-report=term-missing:skip-covered

# Folders of bin with a colon between; by default what Debian and its kin have.
ANNORIS_POSTGRES ?= $(subst $(eval ) ,:,$(wildcard /usr/lib/postgresql/*/bin))

test-postgres: $(INSTALLED)  ## The tests of the hot cache on other versions of PostgreSQL
	@test -n '$(ANNORIS_POSTGRES)' || { echo 'name some: make test-postgres ANNORIS_POSTGRES=/path/to/bin'; exit 2; }
	ANNORIS_POSTGRES='$(ANNORIS_POSTGRES)' $(BIN)/pytest -n 2 tests/test_hot.py tests/test_caches.py

browser:  ## Install Chromium for the tests of the dashboard, where apt-get can; they skip without it
	@command -v chromium >/dev/null || { \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null && timeout 600 sh -c 'apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium >/dev/null'; \
	} || echo 'no Chromium could be installed: tests/test_browser.py will be skipped'

# One module at a time; mutants/ keeps what is known, so that the next run goes on.
MODULE ?= plan

mutation: $(INSTALLED)  ## Change MODULE at each place in turn, and see that a test fails
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[mutation]'
	$(BIN)/mutmut run 'annoris.$(MODULE).*'
	$(BIN)/mutmut results | sed '/not checked/d'

docs: $(INSTALLED)  ## Build the manual into site/, every link followed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --config-file docs/_site/mkdocs.yml
	@echo 'open site/index.html; with search: python3 -m http.server -d site'

pictures: $(INSTALLED)  ## Make the picture of the terminal anew
	$(BIN)/python docs/_site/pictures.py

dist: $(INSTALLED)  ## Build wheel and sdist into dist/
	rm -rf dist
	$(BIN)/python -m build --quiet

# The wheel alone, then with what tests need; the copy of the tests has no source beside it.
WHEEL_TESTS ?= tests/test_cli.py tests/test_settings.py tests/test_envelope.py tests/test_server_api.py
WHEEL := build/wheel/bin

wheel-test: dist  ## Try the built wheel in an empty environment
	rm -rf build/wheel build/tests
	$(PYTHON) -m venv build/wheel
	$(WHEEL)/python -m pip install --quiet --disable-pip-version-check dist/*.whl
	sh .ci/smoke $(WHEEL)/annoris
	$(WHEEL)/python -m pip install --quiet --disable-pip-version-check "$$(echo dist/*.whl)[dev]"
	mkdir build/tests
	cp -R tests examples config.example.toml pyproject.toml build/tests/
	cd build/tests && ../wheel/bin/pytest -q -n 2 $(WHEEL_TESTS)

# Needs Node.js, and the network once.
conformance: $(INSTALLED)  ## The MCP's own suite and inspector against our server
	sh .ci/conformance $(BIN)/annoris

bench: $(INSTALLED)  ## Time each verb against its floor; writes docs/performance.md
	$(BIN)/python benchmarks/bench.py --write docs/performance.md

bench-scale: $(INSTALLED)  ## The same with 100,000 sessions too
	$(BIN)/python benchmarks/bench.py --sizes 100,1000,10000,100000 --write docs/performance.md

scale: $(INSTALLED)  ## Time, memory and disk of 1,000 to 100,000 sessions; writes docs/scaling.md
	$(BIN)/python benchmarks/scale.py --write docs/scaling.md

# Needs the network. What must be installed to save and load, without any extra.
install-size:  ## Check that an installation stays below 60 MB
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-compile --target "$$folder" . && \
	size=$$(du -sm --apparent-size "$$folder" | cut -f1) && echo "installed: $$size MB" && test "$$size" -le 60

load: $(INSTALLED)  ## A server under load, with all tiers and without each
	PYTHONPATH=. $(BIN)/python benchmarks/load.py

# How many times as many examples as in an ordinary run.
FUZZ ?= 50

fuzz: $(INSTALLED)  ## Everything that parses, against many more inputs than in a test run
	ANNORIS_FUZZ=$(FUZZ) $(BIN)/pytest -n 2 -m hypothesis --timeout 3600 --deselect tests/test_model.py

SEED ?= 0
MINUTES ?= 2

chaos: $(INSTALLED)  ## Faults against everything, for MINUTES; SEED replays a plan
	$(BIN)/python -m tests.chaos --seed $(SEED) --minutes $(MINUTES) --report chaos.json

clean:  ## Remove what these targets made
	rm -rf .venv dist build site mutants chaos.json .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

.PHONY: help install demo test test-postgres lint type audit format coverage mutation browser docs pictures dist \
	wheel-test conformance bench bench-scale scale install-size load chaos fuzz clean
