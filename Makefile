# Two virtual environments: .venv holds what a user needs, .venv-test what a developer needs.
# CONTRIBUTING.md says which command to use when.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

PYTHON ?= python3
PINS := pyproject.toml constraints.txt
TOOLS := .venv-test/bin

# $(1): the environment's folder, $(2): the extras. Of pip's many lines, keep one for each file that it fetches or unpacks,
# and what it says of versions that exclude each other.
define install
	@echo "$(1): installing mtobal[$(2)] for $$($(PYTHON) --version) (the first time, some hundred megabytes and a few minutes)"
	@$(PYTHON) -m venv $(1)
	@$(1)/bin/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[$(2)]" \
		| sed -nu -e 's/^ *Downloading \([^ ]*\/\)*/  /p' -e 's/^Processing .*\/\([^/]*\.whl\).*/  \1/p' \
			-e 's/^Installing collected packages:.*/  unpacking/p' -e '/^The conflict is caused by/,$$p'
	@touch $(1)/.installed
endef

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done

.PHONY: demo
demo: .venv/.installed ## install into .venv, run the default benchmark, write its report
	.venv/bin/mtobal bench

.PHONY: test
test: fresh ## install into a fresh .venv-test, run the whole suite
	$(TOOLS)/python -m pytest -n 2

.PHONY: check
check: lint types contract ## the three checks below, without the tests

.PHONY: lint
lint: .venv-test/.installed ## ruff: rules and formatting
	$(TOOLS)/ruff check
	$(TOOLS)/ruff format --check

.PHONY: types
types: .venv-test/.installed ## mypy, strict
	$(TOOLS)/mypy

.PHONY: contract
contract: .venv-test/.installed ## import-linter: which room may import which
	$(TOOLS)/lint-imports

.PHONY: docs
docs: .venv-test/.installed ## the documentation, in docs/_build/html; a warning is an error
	$(TOOLS)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

.PHONY: wheel
wheel: .venv-test/.installed ## build sdist and wheel into dist/, then import the installed wheel
	rm -rf dist .venv-wheel
	$(TOOLS)/python -m build --no-isolation --outdir dist . > /dev/null
	$(TOOLS)/python -m venv --without-pip .venv-wheel
	$(TOOLS)/python -m pip --disable-pip-version-check --python .venv-wheel/bin/python install --quiet --no-deps --no-index dist/*.whl
	@# The dependencies come from .venv-test through a path file; the package itself must come from the wheel.
	$(TOOLS)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$(echo .venv-wheel/lib/python3.*/site-packages)/dependencies.pth"
	cd .venv-wheel && bin/python -c 'import mtobal; assert ".venv-wheel" in mtobal.__file__, mtobal.__file__; print("imported", mtobal.__version__)'
	cd .venv-wheel && bin/mtobal strategies > /dev/null
	@ls dist/*

.PHONY: constraints
constraints: ## resolve constraints.txt again for all supported Pythons (needs uv; keeps the torch pin)
	@torch=$$(grep '^torch==' constraints.txt); \
	{ sed -n '/^#/p' constraints.txt; echo "$$torch" | uv pip compile --quiet --universal --python-version 3.10 --all-extras \
		--no-header --no-annotate --constraint /dev/stdin pyproject.toml | grep -vE '^(nvidia|cuda|colorama)'; } > constraints.new
	@mv constraints.new constraints.txt

.PHONY: clean
clean: ## remove environments, builds and caches; runs/ stays
	rm -rf .venv .venv-test .venv-wheel build dist mtobal.egg-info docs/_build docs/strategies
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find mtobal tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: fresh
fresh: python
	@rm -rf .venv-test
	@$(MAKE) .venv-test/.installed

.venv/.installed: $(PINS) | python
	$(call install,.venv,bench)

.venv-test/.installed: $(PINS) | python
	$(call install,.venv-test,bench$(comma)dev)

comma := ,

.PHONY: python
python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2> /dev/null \
		|| { echo "mtobal needs Python 3.10 to 3.13, which $(PYTHON) is not: name one with make $(firstword $(MAKECMDGOALS)) PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null \
		|| { echo "$(PYTHON) cannot create virtual environments: install your system's venv package for it (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 2; }
