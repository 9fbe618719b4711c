# Every target sets itself up: a virtual environment with the locked versions, made once.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup lock audit quickstart test test-all check format linearize figures docs notebooks gpu-check gpu bench clean

help:            ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## Create .venv with the locked dependencies.

$(STAMP): pyproject.toml $(wildcard dependencies/*.txt) dependencies/install.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Linscale needs Python >= 3.11; set PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python dependencies/install.py
	@touch $@

lock: $(STAMP)   ## Resolve the lock files anew; UPGRADE=1 with the newest versions, UPGRADE=NAME of one package.
	$(BIN)/python -m dependencies.update --upgrade '$(UPGRADE)'

audit: $(STAMP)  ## Compare the locked versions with stored advisories, offline; ADVISORIES=FOLDER of newer ones.
	$(BIN)/python -m dependencies.audit $(ADVISORIES)

quickstart: $(STAMP)  ## Train 4 architectures on this CPU, fit laws, write runs/quickstart/report/index.html.
	$(BIN)/linscale run experiments/quickstart.py
	$(BIN)/linscale report runs/quickstart -o runs/quickstart/report

linearize: $(STAMP)  ## Linearize the quickstart's transformers (run that first); writes runs/linearize_loop/report/index.html.
	$(BIN)/linscale run experiments/linearize_loop.py
	$(BIN)/linscale linearize-report runs/linearize_loop --from-scratch runs/quickstart

test: $(STAMP)   ## Run the tests (10 to 15 minutes on two cores).
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q

test-all: $(STAMP)  ## Run the tests with the long matrices.
	OMP_NUM_THREADS=1 HYPOTHESIS_PROFILE=default $(BIN)/python -m pytest -n 2 -q -m 'not gpu'

check: $(STAMP)  ## Lint, format and type checks.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(STAMP) ## Format and fix what can be fixed.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

figures: $(STAMP)  ## Rebuild every published figure from the records in experiments/results.
	$(BIN)/python -m experiments.published

docs: $(STAMP)   ## Build the documentation into build/site; a warning is an error.
	$(BIN)/mkdocs build --strict

notebooks: $(STAMP)  ## Execute the notebooks and write them, with figures, beside their sources.
	$(BIN)/python notebooks/execute.py

gpu-check:       ## On a CUDA machine, with its own Python: every kernel against fp64, forward and backward; resumable.
	$(PYTHON) -m experiments.gpu.check runs/gpu

gpu:             ## On a CUDA machine, with its own Python: first contact, in resumable pieces of 8 minutes; into runs/gpu.
	$(PYTHON) -m experiments.gpu

bench: $(STAMP)  ## Measure the benchmarks that this machine can run; results under experiments/benchmarks/results.
	$(BIN)/python -m experiments.benchmarks.mixers
	$(BIN)/python -m experiments.benchmarks.steps
	$(BIN)/python -m experiments.benchmarks.lightning_overhead
	$(BIN)/python -m experiments.benchmarks.fitting
	$(BIN)/python -m experiments.benchmarks.decoding --write
	$(BIN)/python -m experiments.benchmarks.importing --write
	$(BIN)/python -m experiments.benchmarks.data --write
	$(BIN)/python -m experiments.benchmarks.overheads --write
	@if command -v nvidia-smi > /dev/null; then $(BIN)/python -m experiments.benchmarks.kernels_gpu; \
		else echo "No NVIDIA GPU here: the kernel benchmark is left out."; fi

clean:           ## Remove caches; runs and data stay.
	rm -rf .pytest_cache .ruff_cache .hypothesis build *.egg-info
