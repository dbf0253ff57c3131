# `make demo` and `make test` do all set-up themselves. They need Python 3.11 or newer, pip and make.

PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

# An unpinned torch may bring gigabytes of CUDA along.
TORCH := $(if $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)),torch==2.13.0,torch>=2.13)

.PHONY: install demo test pytest test-lowest proof lint format stubs docs docs-serve site audit wheel-check arm64 clean

install: .venv/installed

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	@echo "Installing into .venv: some minutes the first time"
	@# Debian keeps `ensurepip` in python3-venv; without it, the system's pip fills the new environment.
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then $(PYTHON) -m venv .venv; \
	else $(PYTHON) -m venv --without-pip .venv && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; fi
	@# uv takes half of pip's time. The code is compiled now, for tests start many processes that import all of it.
	$(BIN)/python -m pip install --quiet '$(TORCH)' uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --editable '.[camera,cloud,export,demo,dev,heic,learn]'
	@touch $@

demo: install
	$(BIN)/cutline demo $(ARGS)

# At once: what one waits for, the other uses.
test: install
	$(MAKE) --no-print-directory --jobs 2 lint pytest

# The code is compiled once, whatever the environment says: tests start hundreds of processes that import it.
# Three processes for two cores, a file each: a third of the time they wait for other processes, for a browser or for
# time to pass. More threads in each would only wait for a core. In the order of names, for else the slowest files, of a
# few tests each, would come last.
pytest: install
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(ARGS)

# The oldest versions that pyproject.toml allows, of what a device installs; with EXTRAS=cloud,keys,otel those, too.
test-lowest:
	TORCH='$(TORCH)' scripts/lowest.sh $(PYTHON) $(EXTRAS)

# What takes a minute a test and is no part of every run, and what every run makes fewer rounds of, or draws fewer
# examples for.
proof: install
	OMP_NUM_THREADS=1 $(BIN)/pytest --proof -m 'proof or sampled or hypothesis' $(ARGS)

lint: install site
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	PYTHONPATH=.dev $(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/python scripts/stubs.py --check
	$(BIN)/python scripts/help.py --check
	$(BIN)/python scripts/threats.py --check
	$(BIN)/python scripts/models.py --check
	$(BIN)/python scripts/pairs.py --check
	$(BIN)/python scripts/architecture.py --check

format: install
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

stubs: install
	$(BIN)/python scripts/stubs.py

docs: install
	$(BIN)/python scripts/help.py
	$(BIN)/python scripts/threats.py
	$(BIN)/python scripts/models.py
	$(BIN)/python scripts/pairs.py
	$(BIN)/python scripts/architecture.py

# The documentation as a site, in build/site. A page that is not in mkdocs.yml, a dead link or a dead anchor fails; with
# --quiet, which drops the warnings that --strict counts, it would not.
site: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# At http://127.0.0.1:8000, and again after every change.
docs-serve: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --livereload $(ARGS)

# Known vulnerabilities of what is installed, and a list of it. Needs PyPI: docs/explanation/security.md.
audit: install
	scripts/audit.sh $(BIN)/python $(ARGS)

wheel-check: install
	scripts/check_wheel.sh $(BIN)/python

# The install of a 64-bit ARM board, emulated: docs/how-to/raspberry-pi.md. Needs root.
arm64: install
	scripts/arm64.sh $(BIN)/python

clean:
	rm -rf .venv build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
