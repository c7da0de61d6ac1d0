# Two commands make everything: `make demo` and `make test`. Both need Python (3.10 or newer), make and git, nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BROWSER_STAMP := $(VENV)/.browser
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast browser test-browser check format lint types lock clean

help:  ## say what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(STAMP)  ## make .venv with the locked versions

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "Python 3.10 or newer is needed: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)  ## run the whole pipeline on synthetic birds: minutes on two cores
	dvc repro
	@echo
	@cat results/table.md
	@echo
	@echo "The report, with every prototype as a picture: results/report/index.html"

test: $(STAMP)  ## all tests; those of the report in a browser where `make browser` has been run
	pytest

test-fast: $(STAMP)  ## all tests but the slow ones
	pytest -m "not slow"

browser: $(BROWSER_STAMP)  ## what tests in a browser need: Chromium (by apt-get, where there is none) and its driver
	$(BIN)/python -m tests.browser.chromium

$(BROWSER_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[browser]'
	@touch $@

test-browser: browser  ## only the tests of the report in a browser
	pytest tests/browser

check: $(STAMP) format-check lint types test  ## format, lint, types, tests

format: $(STAMP)  ## bring the code into shape
	ruff format
	ruff check --fix

.PHONY: format-check
format-check: $(STAMP)
	ruff format --check

lint: $(STAMP)  ## ruff
	ruff check

types: $(STAMP)  ## mypy, strict
	mypy

lock:  ## write the versions installed in .venv to constraints.txt
	$(BIN)/python -m pip install --quiet --editable '.[dev,browser]'
	@{ echo '# The versions that `make setup` installs, remade by `make lock`. Python 3.10, which some of them no longer'; \
	   echo '# support, takes the newest ones within the ranges of pyproject.toml.'; \
	   $(BIN)/python -m pip freeze --exclude-editable | sed 's/$$/ ; python_version >= "3.11"/'; } \
	   > constraints.tmp && mv constraints.tmp constraints.txt

clean:  ## delete what the stages made (DVC's cache keeps it) and the environment
	rm -rf $(VENV) data models results
