# The commands of the README. Every target makes what it needs first; nothing outside the checkout is
# written but pip's and torch's own caches.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# Pins torch by its full version: a range lets pip choose the build with several GB of CUDA packages
# where a smaller one is at hand. On a machine without a GPU, PIP_ARGS can name the CPU index:
#   make demo PIP_ARGS='--extra-index-url https://download.pytorch.org/whl/cpu'
TORCH    ?= torch==2.13.0
PIP_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install demo serve test test-slow test-python fuzz soak strangers bench gpu-check perf-analyzer docs docs-serve diagrams docs-picture check proto lock wheelhouse clean

help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } /^##@/ { print "\n" substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  %-15s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

##@ Start
install: $(STAMP) ## Make the virtual environment with everything

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Vistazo needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; set PYTHON=") if sys.version_info < (3, 11) else 0'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) $(TORCH) -e '.[dev]'
	touch $@

demo: $(STAMP) ## From nothing to predictions: export, serve, classify, metrics, evaluation
	$(BIN)/python tests/e2e/demo.py

serve: $(STAMP) ## Serve ./models on 127.0.0.1:8001
	$(BIN)/vistazo serve --models models

##@ Test
# Hundreds of processes start: with their bytecode kept, none compiles what another has.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --quiet
# Three tests at a time, as a third of their time is waiting; each module's in one process. OpenMP's threads of
# all would wait for one another by turning.
test: $(STAMP) ## The tests, but for those that are slow by nature or have to run alone
	OMP_NUM_THREADS=1 $(PYTEST) -n 3 --dist loadscope -m "not slow and not serial"

# First those that may share the machine, one by one to whoever is free, then each of the others alone.
test-slow: $(STAMP) ## Those: containers, a minute of soak, fuzzing, attacks, 100 reloads, perf_analyzer, load
	OMP_NUM_THREADS=1 $(PYTEST) -n 3 --dist load -m "slow and not serial"
	$(PYTEST) -m serial

test-python: ## The tests with another Python, in an environment of its own: PYTHON=python3.13
	$(MAKE) --no-print-directory test VENV=.venv-$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')

SOAK_SECONDS ?= 600
soak: $(STAMP) ## Good, bad, huge, cancelled and slow callers for ten minutes (SOAK_SECONDS)
	PYTHONPATH=tests $(BIN)/python -m soak --seconds $(SOAK_SECONDS)

STRANGERS_SECONDS ?= 8
strangers: $(STAMP) ## What a good caller waits beside each kind of bad one: a table (about 20 minutes)
	PYTHONPATH=tests $(BIN)/python -m strangers --seconds $(STRANGERS_SECONDS)

fuzz: $(STAMP) ## 20,000 requests of strange and broken bytes at a real server (a few minutes)
	FUZZ_CASES=20000 $(BIN)/python -m pytest -s tests/service/bad_input/test_fuzz.py

perf-analyzer: $(STAMP) ## Fetch NVIDIA's load generator for the test that runs it
	PYTHON=$(BIN)/python tests/interop/fetch_perf_analyzer.sh .perf_analyzer

##@ Measure
bench: $(STAMP) ## The standard benchmark set on ./models → bench/results.json (about 15 minutes)
	$(BIN)/vistazo export lenet resnet18 alexnet vgg16 --models models --allow-untrained
	$(BIN)/vistazo export lenet resnet18 alexnet vgg16 --models models --allow-untrained --precision int8
	mkdir -p bench
	$(BIN)/vistazo bench standard --models models --output bench/results.json --plot bench/latency.png

# Needs onnxruntime-gpu in place of onnxruntime; without a GPU it says so and ends well.
gpu-check: $(STAMP) ## Serve on CUDA: provider, parity with the CPU, throughput by batch size → JSON
	$(BIN)/vistazo export resnet18 alexnet vgg16 --models models/gpu --allow-untrained
	$(BIN)/python -m vistazo_bench.gpu --models models/gpu --output bench/gpu.json

##@ Docs
# Material prints an advertisement for its successor otherwise.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs
docs: $(STAMP) ## Build the documentation → build/docs; a broken link or anchor fails it
	$(MKDOCS) build --strict --clean

docs-serve: $(STAMP) ## Show the documentation on 127.0.0.1:8000 while it is written
	$(MKDOCS) serve --strict

diagrams: ## Draw docs/diagrams/*.mmd anew; takes npm and Chromium
	docs/diagrams/render.sh

docs-picture: $(STAMP) ## Record the pictures of terminals: runs the demo, and a first try
	$(BIN)/python docs/pictures/record.py
	$(BIN)/python docs/pictures/terminal.py

##@ Maintain
check: $(STAMP) ## Lint, format, types, import rules, generated code up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=proto:preprocessing:server:client:export:bench:evaluate $(BIN)/lint-imports --no-cache
	$(MAKE) --no-print-directory proto PROTO_OUT=build/proto
	diff -r -x __pycache__ -x '*.proto' -x __init__.py -x py.typed proto/vistazo_proto build/proto/vistazo_proto

PROTO_OUT ?= proto
proto: $(STAMP) ## Regenerate the protobuf code
	mkdir -p $(PROTO_OUT)
	$(BIN)/python -m grpc_tools.protoc --proto_path=proto --python_out=$(PROTO_OUT) --pyi_out=$(PROTO_OUT) \
	  $(sort $(wildcard proto/vistazo_proto/*.proto))
	$(BIN)/python -m grpc_tools.protoc --proto_path=proto --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
	  --grpc_python_out=$(PROTO_OUT) --mypy_grpc_out=quiet:$(PROTO_OUT) \
	  $(sort $(shell grep -l '^service ' proto/vistazo_proto/*.proto))

lock: $(STAMP) ## Resolve the versions in the images anew → deploy/requirements/
	$(BIN)/python deploy/lock.py

wheelhouse: ## Put torch, as pip finds it, where the build of the export image looks first
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
	  --python-version 3.11 --dest wheelhouse $(PIP_ARGS) $(TORCH)

clean: ## Remove what make made
	rm -rf $(VENV) build dist models .demo .perf_analyzer
