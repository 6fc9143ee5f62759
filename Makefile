# SPDX-License-Identifier: AGPL-3.0-or-later
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEV := $(VENV)/.dev

# Two processes of one thread each: most of a test is Python.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

.PHONY: demo test test-slow test-gpu check docs clean

# detect takes YOLO11n and COCO128 where they can be had; the other tasks pictures of shapes.
TASK ?= detect

demo: $(READY)
	$(BIN)/python demo/run.py --task $(TASK)

test: $(DEV)
	$(PYTEST) -m "not slow and not gpu"

test-slow: $(DEV)
	$(PYTEST) -m "slow and not gpu"

# With whatever TensorRT is there; ULTRA_MQ_TRT_PYTHON names its Python where it is not ours.
test-gpu: $(DEV)
	$(BIN)/python -m pytest -q -m gpu

check: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# uv installs the CUDA build of torch in half a minute where pip takes ten; compiled once, imports take half the time.
$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade uv
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode -e ".[openvino,sweep,tensorrt-rtx]"
	touch $@

# What tests need beside it, experiment trackers among them, which would log every run.
$(DEV): $(READY)
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode -e ".[dev,openvino,sweep,tensorrt-rtx]"
	touch $@

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir site

$(VENV)/.docs: $(READY)
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet -e ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) runs demo/data site
