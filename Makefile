# make env    the Python environment in .venv, nothing needs root or a compiler
# make demo   the whole suite on synthetic surveys, on this machine
# make test   all tests; as root on Debian it also installs the real Slurm, MPI and HDF5 that they run on
# make evaluate   what each row of configs/evaluations shows, on the data in $HPCSPEC_REAL_DATA: hours on two cores
# make lint   ruff
# make clean  removes .venv, caches and build outputs; runs/ stays
PYTHON ?= python3
# Installed first and pinned, so that the machine's own choice of build (CPU or CUDA) is the one that stays.
TORCH ?= torch==2.13.0
PYTEST_ARGS ?=
EVALUATE_OUTPUT ?= runs/evaluate
EVALUATE_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --no-input --disable-pip-version-check
CORE := $(VENV)/.core
DEV := $(VENV)/.dev
HAS_MPI := import mpi4py; mpi4py.rc.initialize = False; import mpi4py.MPI

.DEFAULT_GOAL := env
.PHONY: env demo test evaluate lint clean

env: $(DEV)

$(CORE): pyproject.toml
	@echo "==> $(VENV) with $$($(PYTHON) --version)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "==> $(TORCH)"
	@$(PIP) $(TORCH)
	@echo "==> hpcspec and the libraries it uses"
	@DS_BUILD_OPS=0 $(PIP) --editable .
	@touch $@

$(DEV): $(CORE)
	@echo "==> the tools for development"
	@DS_BUILD_OPS=0 $(PIP) --editable ".[dev]"
	@touch $@

demo: $(CORE)
	@$(BIN)/python -c "$(HAS_MPI)" 2>/dev/null || { echo "==> no MPI on this machine: Open MPI's wheel"; $(PIP) --editable ".[mpi]"; }
	$(BIN)/python -m hpcspec.submit pipeline --config configs/pipelines/demo.yaml --run runs/demo --executor local

# What cannot be installed is left out and its tests are skipped; with HPCSPEC_REQUIRE_CLUSTER=1 that is a failure.
test: $(DEV)
	@scripts/install-system.sh || test "$$HPCSPEC_REQUIRE_CLUSTER" != 1
	@scripts/install-h5py-mpi.sh $(VENV) || test "$$HPCSPEC_REQUIRE_CLUSTER" != 1
	$(BIN)/python -m pytest $(PYTEST_ARGS)

evaluate: $(CORE)
	for row in $(patsubst configs/evaluations/%.yaml,%,$(wildcard configs/evaluations/*.yaml)); do \
		$(BIN)/python -m hpcspec.evaluate $$row --output $(EVALUATE_OUTPUT) $(EVALUATE_ARGS) || exit 1; done

lint: $(DEV)
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
