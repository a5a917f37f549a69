# make quickstart   train a small teacher and distill it into a student, on synthetic data
# make test         lint, format, types, docs, tests
# make docs         the docs in build/docs, and their examples run
# make versions     tests with the lowest and with the newest versions of what the package needs (two environments more)
# make dist         sdist and wheel in dist/
# make audit        compare the pinned versions with known vulnerabilities; needs a network
# make clean        remove .venv, builds and caches; runs/ stays
#
# All work in .venv/, which is made on the first call. PYTHON=python3.12 make ... makes it with another Python.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt

# A stamp is touched after a successful install and is older than a change of what is to be installed.
BASE := $(VENV)/.installed-base
DEV := $(VENV)/.installed-dev
REQUIREMENTS := pyproject.toml constraints.txt

# Once installed, nothing here needs a network.
export HF_HUB_OFFLINE := 1
export WANDB_MODE := offline
export WANDB_SILENT := true

.PHONY: quickstart test lint typecheck pages docs versions dist audit clean
.DELETE_ON_ERROR:

quickstart: $(BASE)
	$(BIN)/python train.py fit --config configs/synthetic/teacher.yaml
	$(BIN)/python train.py fit --config configs/synthetic/student.yaml

# A file's tests share what they have trained, so a file stays in one process.
test: lint typecheck pages
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# In a copy with callbacks/ and datamodules/ in the places where an installed package has them, so that mypy checks them
# as lightning_kd.callbacks and lightning_kd.datamodules.
typecheck: $(DEV)
	rm -rf build/typecheck
	mkdir -p build/typecheck
	cp -Rp lightning_kd build/typecheck/lightning_kd
	cp -Rp callbacks datamodules build/typecheck/lightning_kd/
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache

# A dead link or a name without an entry is a warning, and a warning ends the build.
pages: $(DEV)
	$(BIN)/python -m sphinx -q -W --keep-going -d build/doctrees docs build/docs

docs: pages
	$(BIN)/python -m pytest -q tests/test_docs.py tests/test_doctests.py
	@echo "build/docs/index.html"

versions:
	$(PYTHON) tests/versions.py lowest
	$(PYTHON) tests/versions.py newest

# In isolation, as an installer builds it from the sdist.
dist: $(DEV)
	rm -rf dist
	$(BIN)/python -m build

# The constraints stand in the same pip call as the package: an unpinned torch brings gigabytes that a CPU cannot use.
$(BASE): $(REQUIREMENTS)
	@echo "Installing lightning-kd into $(VENV): once, a few minutes, about 1.5 GB with a CPU build of torch ..."
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

# What this installs includes the base.
$(DEV): $(REQUIREMENTS)
	@echo "Installing lightning-kd and its checks into $(VENV): once, a few minutes, about 2 GB with a CPU build of torch ..."
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[dev]'
	touch $(BASE) $@

# In an environment of its own: pip-audit is no part of what it looks at.
audit:
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install -q --disable-pip-version-check pip-audit
	build/audit/bin/pip-audit -r constraints.txt --no-deps --disable-pip --progress-spinner off

clean:
	rm -rf $(VENV) build dist docs/_made lightning_kd.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
