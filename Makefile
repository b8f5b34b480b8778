# make         create the environment, run the pipeline, name the report
# make test    the tests and the linter
# make speed   time KV-cache policies at Qwen3-0.6B's shape, with random weights
# make env     the environment alone, in .venv
# make clean   remove the environment and what the pipeline made

SHELL := /bin/bash
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export DVC_NO_ANALYTICS := true
export HF_HUB_DISABLE_TELEMETRY := 1

# Without these two flags GCC drops the tile configuration of ggml's AMX kernels: quantised models crash on such CPUs.
CFLAGS_GGML := -fno-tree-dse -fno-dse
PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: all env test speed lint clean prerequisites
.DEFAULT_GOAL := all

all: env
	dvc repro
	@echo "The report: eval/report.html (and eval/report.md)"

env: .venv/complete

.venv/complete: requirements.lock
	@$(MAKE) --no-print-directory prerequisites
	python3 -m venv --clear .venv
	grep -v '^llama-cpp-python' requirements.lock | $(PIP) --requirement /dev/stdin
	grep '^llama-cpp-python' requirements.lock | \
	  CMAKE_ARGS="-DCMAKE_C_FLAGS='$(CFLAGS_GGML)' -DCMAKE_CXX_FLAGS='$(CFLAGS_GGML)'" \
	  $(PIP) --no-deps --no-cache-dir --no-binary llama-cpp-python --requirement /dev/stdin
	touch $@

prerequisites:
	@missing=0; \
	need() { "$${@:2}" >/dev/null 2>&1 || { echo "missing: $$1" >&2; missing=1; }; }; \
	need "Python 3.11 or newer (python3)" python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; \
	need "Python's venv module (on Debian: apt install python3-venv)" python3 -c 'import ensurepip, venv'; \
	need "a C++ compiler (c++; on Debian: apt install g++)" c++ --version; \
	need "cmake (on Debian: apt install cmake)" cmake --version; \
	need "git (on Debian: apt install git)" git --version; \
	exit $$missing

test: env
	ruff check .
	ruff format --check .
	python -m pytest --numprocesses 2 --dist loadfile

speed: env
	python -m pipeline.speed

clean:
	rm -rf .venv .checkpoints .cache artifacts data/raw data/chat
