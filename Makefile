# On a fresh machine `make demo` and `make test` do everything; each installs first. PIP_* from the environment is honoured.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= $(or $(KTSE_RUNS),runs)/demo
FULL ?= $(RUN)-full

# Without a GPU the CPU build of torch is meant; whoever configures pip in the environment has their own source for it.
ifeq ($(shell command -v nvidia-smi 2>/dev/null),)
ifeq ($(PIP_INDEX_URL)$(PIP_EXTRA_INDEX_URL)$(PIP_FIND_LINKS),)
export PIP_EXTRA_INDEX_URL := https://download.pytorch.org/whl/cpu
endif
endif

.PHONY: install demo demo-full test test-kernels test-others test-slow test-gpu test-all lint clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints-cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints-cpu.txt --editable '.[train,tune,kernels,crf,remote,onnx,launcher,dev]'
	touch $@

demo: install
	$(BIN)/ktse train
	$(BIN)/ktse masks --run $(RUN)
	$(BIN)/ktse evaluate --run $(RUN)
	$(BIN)/ktse report --run $(RUN)

# The demo's network once more, with IRN instead of the CRF and a segmentation network that needs no tags.
demo-full: demo $(FULL)/config.yaml
	$(BIN)/ktse masks --run $(FULL) --refine irn masks.pictures.train=750
	$(BIN)/ktse segment --run $(FULL)
	$(BIN)/ktse evaluate --run $(FULL)
	$(BIN)/ktse report --run $(FULL)

# A run has masks of one kind, so these belong to a second one; its config comes last, for it says that all is there.
$(FULL)/config.yaml: | demo
	mkdir -p $(FULL)
	cd $(RUN) && cp model.safetensors ATTRIBUTION.md metrics.jsonl summary.json $(abspath $(FULL))
	cp $(RUN)/config.yaml $@

# Beside each other: kernels in Triton's interpreter (line by line, and without coverage's tracer, which doubles their
# time) and as machine code keep one core busy, the others mostly wait for processes.
KERNEL_TESTS := tests/kernels/test_kernel_resources.py $(wildcard tests/kernels/triton/test_*_kernel.py)

test: install lint
	$(MAKE) --jobs=2 test-kernels test-others

test-kernels: install
	$(BIN)/python -m pytest -m "not slow" $(KERNEL_TESTS)

test-others: install
	$(BIN)/python -m pytest -m "not slow" $(KERNEL_TESTS:%=--ignore=%) --durations=15 --cov --cov-report=term:skip-covered --cov-fail-under=90

test-slow: install
	$(BIN)/python -m pytest -m slow

# On a machine with a GPU, where $(PYTHON) finds a CUDA build of torch, triton, pytest and this project's requirements.
test-gpu:
	KTSE_GPU_TESTS=1 $(PYTHON) -m pytest tests/gpu

test-all: test test-slow

lint: install
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV)
