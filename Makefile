# Every target does its own set-up: a virtual environment in .venv, made once and again when pyproject.toml changes.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Where there is no NVIDIA GPU, the CPU build of torch is enough and 3 GB smaller.
CONSTRAINTS := $(shell command -v nvidia-smi >/dev/null 2>&1 || echo "--constraint .ci/constraints-cpu.txt")

# One more than cores, since tests wait for processes and clocks; four at most, of 1 GB each.
WORKERS := $(shell echo $$(( $$(nproc) < 3 ? $$(nproc) + 1 : 4 )))

# Peers that speed is compared with, each in an environment of its own: their versions do not agree.
PEERS      := sentence-transformers onnx openvino rerankers flashrank infinity
PEERS_VENV := .venv-peers
RESULTS    := benchmarks/results

# `make check-gpu HERE=1`: with the Python that is there, which has torch and pytest; nothing is made or installed.
GPU_PYTHON := $(if $(HERE),$(PYTHON),$(BIN)/python)

.PHONY: help demo test lint floor test-floor docs bench-peers bench-cpu bench-plots bench-gpu bench-commit bench-store bench-quality check-gpu torture mutation clean

help:  ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/installed  ## rerank samples/ with the built-in model and show whether it helped
	mkdir -p out
	$(BIN)/rerank-cli rerank-file samples/python-docs.jsonl -o out/demo.jsonl --overwrite \
	    --qrels samples/qrels.txt --metric nDCG@10 --metric RR@10 --format text

test: $(VENV)/installed-dev lint  ## all checks and tests, on up to four cores
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder --cov --cov-report=term

lint: $(VENV)/installed-dev  ## ruff, mypy and the order of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

floor: .venv-floor/installed  ## an environment with the oldest torch and transformers that are allowed

test-floor: floor  ## launches, kernels and attention with them
	.venv-floor/bin/python -m pytest -q tests/unit/models/test_launches.py tests/unit/models/test_elementwise.py \
	    tests/unit/models/test_attention.py tests/unit/models/test_linear.py tests/unit/models/test_fp8.py

docs: $(VENV)/installed  ## the pages of docs/reference/ that are made of the code
	$(BIN)/python docs/make_reference.py

bench-peers: $(PEERS:%=$(PEERS_VENV)/%/installed)  ## environments of the peers, some 8 GB; one that fails is told and left

bench-cpu: $(VENV)/installed-bench bench-peers  ## speed beside others on this CPU, start, memory, growth, and plots of them
	$(BIN)/python -m benchmarks.speed --json $(RESULTS)/speed.json
	$(BIN)/python -m benchmarks.speed --shape llama --json $(RESULTS)/speed-llama.json
	$(BIN)/python -m benchmarks.startup --json $(RESULTS)/startup.json
	$(BIN)/python -m benchmarks.growth --json $(RESULTS)/growth.json
	$(BIN)/python -m benchmarks.host
	$(BIN)/python -m benchmarks.page_images
	$(BIN)/python -m benchmarks.plots

bench-plots: $(VENV)/installed-bench  ## the plots of benchmarks/results/ anew
	$(BIN)/python -m benchmarks.plots

GPU_PEERS := sentence-transformers vllm
bench-gpu: $(if $(HERE),,$(VENV)/installed-bench $(GPU_PEERS:%=$(PEERS_VENV)/%/installed))  ## all measurements of a GPU, each in a process of its own (HERE=1: with the Python that is there)
	$(GPU_PYTHON) -m benchmarks.gpu_first_run

bench-commit: $(VENV)/installed-bench  ## what it costs that a run survives kill -9
	$(BIN)/python -m benchmarks.commit_cost

bench-store: $(VENV)/installed-bench  ## what a store of scores costs and spares: a million pairs, cold and warm
	$(BIN)/python -m benchmarks.store

bench-quality: $(VENV)/installed-bench  ## nDCG@10 of packed and padded forwards on a collection
	$(BIN)/python -m benchmarks.quality

check-gpu: $(if $(HERE),,$(VENV)/installed-dev)  ## what only an NVIDIA GPU can show (HERE=1: with the Python that is there)
	$(GPU_PYTHON) -m pytest tests/gpu -rs -p no:cacheprovider

torture: $(VENV)/installed-torture  ## runs that are killed and hindered at every call, gigabytes, an hour of fuzzing (RERANK_FUZZ_SECONDS); takes hours
	RERANK_TORTURE=long $(BIN)/python -m pytest tests/torture
	RERANK_TORTURE=long $(BIN)/python -m pytest tests/unit/job/test_scoring_loop.py tests/unit/checkpoint/test_checkpoint.py tests/unit/formats/test_jsonl.py
	RERANK_TORTURE=long $(BIN)/python -m pytest tests/unit/journal --cov=rerank_cli.journal --cov-branch --cov-fail-under=100
	RERANK_TORTURE=long $(BIN)/python -m pytest tests/cli/test_hostile.py

mutation: $(VENV)/installed-torture  ## are the tests of the commit module strong: how many changes of its code do they notice
	$(BIN)/python -m mutmut run --max-children 2
	$(BIN)/python -m mutmut results

$(VENV)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

$(VENV)/installed: $(VENV)/python pyproject.toml hatch_build.py rerank_cli/models/amx.cpp
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) --editable ".[dev,ray,browser,cloud,stores,oracle]"
	touch $@

$(VENV)/installed-torture: $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) --editable ".[dev,ray,browser,cloud,stores,oracle,torture]"
	touch $@

$(VENV)/installed-bench: $(VENV)/installed
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) --editable ".[bench]"
	touch $@

FLOOR := torch==2.11.0 transformers==5.17.0
.venv-floor/installed: pyproject.toml
	$(PYTHON) -m venv .venv-floor
	.venv-floor/bin/python -m pip install --quiet $(FLOOR) --editable . pytest hypothesis pytest-cov pytest-timeout
	touch $@

$(PEERS_VENV)/%/installed: benchmarks/requirements/%.txt
	$(PYTHON) -m venv $(@D)
	# torchvision, which optimum-intel asks for, is built for CUDA and does not load beside torch's CPU build.
	$(@D)/bin/python -m pip install --quiet -r $< && $(@D)/bin/python -m pip uninstall --quiet --yes torchvision \
	    && touch $@ || echo "$*: could not be installed; the table will say so"

clean:  ## remove what was made
	rm -rf $(VENV) $(PEERS_VENV) .venv-floor out .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache mutants
