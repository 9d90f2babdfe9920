# Two commands do everything on a new machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOCKS := requirements/cpu.txt requirements/no-deps.txt

.PHONY: demo test check pages docs lock lock-gpu clean

demo: $(STAMP)  ## prepare, train, merge and evaluate on example sessions, 8 to 13 minutes on two cores
	$(BIN)/sdft demo --out demo --overwrite

test: $(STAMP)  ## lint, types, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

check: test

pages: $(STAMP)  ## the pages that are made from the program: settings, commands, templates, exit codes
	$(BIN)/python -m docs.make_settings
	$(BIN)/python -m docs.make_commands

docs: pages  ## the site, into site/; a dead link or a page outside the navigation is an error
	test -x $(VENV)-docs/bin/mkdocs || { $(PYTHON) -m venv $(VENV)-docs && \
	  $(VENV)-docs/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/docs.txt; }
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --strict --quiet

# Built once; a second run reuses it. A changed lock file or pyproject.toml installs again.
$(STAMP): $(LOCKS) pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/cpu.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/no-deps.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(STAMP)

lock:  ## pin requirements/cpu.in and docs.in into cpu.txt and docs.txt
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/cpu.in
	{ echo "# Made by 'make lock' from cpu.in; do not edit."; \
	  $(VENV)-lock/bin/python -m pip freeze --exclude pip --exclude setuptools | sed 's/^torch==\([0-9.]*\)+cpu/torch==\1/'; \
	} > requirements/cpu.txt
	rm -rf $(VENV)-lock
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/docs.in
	{ echo "# Made by 'make lock' from docs.in; do not edit."; $(VENV)-lock/bin/python -m pip freeze; } > requirements/docs.txt
	rm -rf $(VENV)-lock

# Needs no GPU: uv resolves for another platform. The second one is for the unsloth backend on a GPU.
lock-gpu:  ## pin the extras gpu and unsloth for Linux with CUDA into requirements/gpu.txt and requirements/unsloth.txt
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet --disable-pip-version-check uv
	for extras in "gpu:--extra gpu" "unsloth:--extra gpu --extra unsloth"; do \
	  { echo "# Made by 'make lock-gpu' from pyproject.toml ($${extras#*:}), for Linux and Python 3.12; do not edit."; \
	    $(VENV)-lock/bin/uv pip compile pyproject.toml $${extras#*:} --python-version 3.12 --no-annotate --no-header \
	      --python-platform x86_64-unknown-linux-gnu --quiet; \
	  } > requirements/$${extras%%:*}.txt; \
	done
	rm -rf $(VENV)-lock

clean:
	rm -rf $(VENV) $(VENV)-docs site demo
