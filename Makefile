# Two commands do everything on a new machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOCKS := requirements/cpu.txt requirements/no-deps.txt

.PHONY: demo test check settings lock clean

demo: $(STAMP)  ## prepare, train, merge and evaluate on example sessions, about 12 minutes on two cores
	$(BIN)/sdft demo --out demo --overwrite

test: $(STAMP)  ## lint, types, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

check: test

settings: $(STAMP)  ## docs/settings.md, from the configuration
	$(BIN)/python docs/make_settings.py

# Built once; a second run reuses it. A changed lock file or pyproject.toml installs again.
$(STAMP): $(LOCKS) pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/cpu.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/no-deps.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(STAMP)

lock:  ## pin requirements/cpu.in into requirements/cpu.txt
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/cpu.in
	{ echo "# Made by 'make lock' from cpu.in; do not edit."; \
	  $(VENV)-lock/bin/python -m pip freeze --exclude pip --exclude setuptools | sed 's/^torch==\([0-9.]*\)+cpu/torch==\1/'; \
	} > requirements/cpu.txt
	rm -rf $(VENV)-lock

clean:
	rm -rf $(VENV) demo
