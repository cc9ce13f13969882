# make serve    talk to a model: makes .venv, installs, fetches the embedded model, serves on 127.0.0.1:30000
#               ARGS='--model-path ... --port ...' are passed on; EXTRAS=cuda13 (or cuda12) installs jax for a GPU
# make test     everything that must pass: lint, then the tests
# make lint     ruff, pyright, import-linter
# make format   ruff's fixes
# make bench    the benchmarks behind the README's table
# make reference  docs/reference/ from the docstrings
# make clean    removes .venv and what was built; models and compiled steps stay in the cache
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: help serve test lint format bench reference clean

ARGS ?=
EXTRAS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SERVE_READY := .venv/.ready-serve$(addprefix -,$(EXTRAS))
DEV_READY := .venv/.ready-dev

help:
	@grep '^# make\|^#  ' Makefile | cut -c 3-

serve: $(SERVE_READY)
	@$(BIN)/sgjax serve $(ARGS)

test: lint
	@$(BIN)/python scripts/install_h100_compiler.py build/h100
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(DEV_READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo

format: $(DEV_READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(DEV_READY)
	$(BIN)/python -m benchmarks.run_all $(ARGS)

reference: $(DEV_READY)
	$(BIN)/python scripts/make_reference.py

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find sgjax server tests benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps live in .venv, so that deleting it is always a fresh start. Installed in place: an edit is live.
.venv/bin/python:
	@python=$$(bash scripts/find_python.sh); echo "sgjax: making .venv with $$python"; $$python -m venv --upgrade-deps .venv

$(SERVE_READY): pyproject.toml constraints.txt | .venv/bin/python
	@echo "sgjax: installing (first time: some 200 MB of packages)"
	@if [ -z "$(EXTRAS)" ] && command -v nvidia-smi >/dev/null; then \
	    echo "sgjax: a GPU is here; 'make serve EXTRAS=cuda13' (or cuda12) uses it, this installs for the CPU"; fi
	$(PIP) install -c constraints.txt -e '.$(if $(EXTRAS),[$(EXTRAS)])'
	@touch $@

$(DEV_READY): pyproject.toml constraints.txt | .venv/bin/python
	@echo "sgjax: installing what the tests need"
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@ .venv/.ready-serve
