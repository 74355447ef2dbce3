# make run, make test, make lint, make bench: each first sets up .venv when it is missing or out of date.
# Another interpreter: make PYTHON=python3.12 …   An MPI of your own: make EXTRAS=models,radical,test,lint …

PYTHON ?= python3
EXTRAS ?= mpich,models,radical,test,lint
comma := ,
VENV := $(CURDIR)/.venv
STAMP := $(VENV)/.aaflow-$(subst $(comma),-,$(EXTRAS))
RUN_FOLDER ?= demo

# Launchers and ranks find the same interpreter and mpiexec, whatever environment the caller has active.
export PATH := $(VENV)/bin:$(PATH)
export VIRTUAL_ENV := $(VENV)
unexport PYTHONHOME PYTHONPATH
# A task group starts many interpreters: without bytecode on disk each compiles all of aaflow.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help run test cluster-shell coverage lint format bench setup constraints clean

help:
	@echo "make run            index the documentation of Python's standard library and ask it questions"
	@echo "make test           run the tests"
	@echo "make cluster-shell  a shell on the login node of a virtual Slurm cluster of four nodes"
	@echo "make coverage       run all tests and report what they cover"
	@echo "make lint           check style, types and the direction of imports"
	@echo "make format         put the sources into the style that lint checks"
	@echo "make bench          run the benchmarks"
	@echo "make setup          only set up .venv"
	@echo "make constraints    pin the newest versions of all dependencies"
	@echo "make clean          remove .venv and everything that the other targets made"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "aaflow needs Python 3.10 or newer as $(PYTHON); name one with: make PYTHON=python3.12"; exit 1; } >&2
	@$(PYTHON) -c 'import ensurepip, venv' || \
		{ echo "$(PYTHON) can't make virtual environments; on Debian or Ubuntu: apt install python3-venv"; exit 1; } >&2
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing aaflow[$(EXTRAS)] into .venv (some minutes the first time)"
	@$(VENV)/bin/python -m pip install -qq --disable-pip-version-check --no-input \
		--constraint constraints.txt --editable '.[$(EXTRAS)]'
	@rm -f $(VENV)/.aaflow-*
	@touch $@

run: $(STAMP)
	@python apps/ask_stdlib.py $(RUN_FOLDER)

# Tests of many processes run first, a file at a time each, and what takes long before others. COVERAGE=yes measures what
# the tests reach.
PYTEST := python -m pytest -q --disable-warnings
NONE_OK := || { status=$$?; [ $$status -eq 5 ] || exit $$status; }
COVERAGE ?=
FIRST := $(if $(COVERAGE),--cov --cov-report= --cov-fail-under=0)
THEN := $(if $(COVERAGE),--cov --cov-append --cov-report=term)

LONGEST := $(addprefix tests/,cluster/ corpora/ endtoend/ faults/ pilots/)
ORDERED := $(LONGEST) $(filter-out $(LONGEST) tests/__pycache__/,$(sort $(wildcard tests/*/)))

test: $(STAMP)
	@rm -f .coverage .coverage.*
	@python tests/compile_kernels.py
	@$(PYTEST) -n 3 --dist loadfile --no-loadscope-reorder -m serial $(ORDERED) $(FIRST) $(NONE_OK)
	@$(PYTEST) -n 2 -m 'not serial' $(THEN)

cluster-shell: $(STAMP)
	@python tests/cluster/virtualcluster.py

MEASURED := $(STAMP)-coverage

$(MEASURED): $(STAMP)
	@$(VENV)/bin/python -m pip install -qq --disable-pip-version-check --no-input \
		--constraint constraints.txt --editable '.[coverage]'
	@touch $@

coverage: $(MEASURED)
	@$(MAKE) --no-print-directory test COVERAGE=yes

lint: $(STAMP)
	ruff check .
	ruff format --check .
	mypy
	lint-imports --no-logo

format: $(STAMP)
	ruff check --fix .
	ruff format .

# The peers are large: nothing else needs them.
PEERS := $(STAMP)-bench

$(PEERS): $(STAMP)
	@echo "Installing the benchmarks' peers into .venv"
	@$(VENV)/bin/python -m pip install -qq --disable-pip-version-check --no-input \
		--constraint constraints.txt --editable '.[bench]'
	@touch $@

bench: $(PEERS)
	@set -e; for program in benchmarks/*.py; do echo "== $$program"; python $$program; done

# The universal resolution holds for Python 3.10 to 3.13. torch is pinned by hand: its newest release is not always the
# one that sites have. What its CUDA build needs follows torch's own pins.
constraints:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))'
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@test -x $(VENV)/bin/uv || $(VENV)/bin/python -m pip install --quiet uv
	echo 'torch==2.13.0' | uv pip compile --quiet --universal --python-version 3.10 --all-extras --upgrade --no-annotate \
		--custom-compile-command 'make constraints' --constraints - pyproject.toml \
		| grep -vE '^(nvidia|cuda|triton)-?' > constraints.new
	@grep -q '^torch==2.13.0' constraints.new
	@! grep -nE '://|^-|^/|@ ' constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) build dist *.egg-info htmlcov .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache \
		.hypothesis .import_linter_cache $(RUN_FOLDER)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
