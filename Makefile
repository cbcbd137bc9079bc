# Each target does its own set-up, on a machine with Python 3.11 to 3.13, git and make. Start with `make help`.

PYTHON ?= python3
PY := .venv/bin/python
BOOK_PY := .venv-book/bin/python
CHAPTER ?=
NAME ?=
PORT ?= 8000
# llama.cpp for the benchmarks: for this CPU, but without AMX, with which its first token can be a segmentation fault.
LLAMA_FLAGS := -DGGML_NATIVE=OFF $(shell grep -qs avx512_vnni /proc/cpuinfo && \
	echo -DGGML_AVX512=ON -DGGML_AVX512_VNNI=ON)

.PHONY: help book serve test test-fast test-portable test-site lint refresh results bench mutate lab wheel release \
        constraints clean env book-env
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

book: book-env ## build the site in _build/html from the stored outputs (no PyTorch); warnings are errors
	@$(BOOK_PY) tools/site.py build

serve: book ## build the site and show it at http://127.0.0.1:8000 (PORT=...)
	@$(PYTHON) -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

test: lint ## everything: lint, unit tests, every notebook re-executed and compared, the built site
	@$(PY) -m pytest
	@$(PY) tools/notebooks.py check
	@$(PY) tools/notebooks.py nbval
	@$(MAKE) test-site

test-fast: env ## unit tests, doctests and notebook structure, under 60 s
	@$(PY) -m pytest -m "not slow"

test-portable: env ## every notebook as on a plainer CPU: AVX2, one thread
	@ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=1 $(PY) tools/notebooks.py nbval --portable

test-site: env book ## the checks of the built site
	@$(PY) -m pytest tests/site -rs

lint: env
	@$(PY) -m ruff check --quiet .
	@$(PY) -m ruff format --check --quiet . || { echo "run: .venv/bin/ruff format ."; exit 1; }

refresh: env ## re-execute the notebooks whose code changed (CHAPTER=counting: that one)
	@$(PY) tools/notebooks.py refresh $(CHAPTER)

results: env ## record the runs that take long, and resume where they stopped (NAME=...)
	@test -n "$(NAME)" || { echo "which one? make results NAME=..."; exit 1; }
	@$(PY) tools/record.py $(NAME)

bench: env ## time the book's code beside the field's tools, which it installs (NAME=ngram: one file of benchmarks/)
	@$(PY) -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable ".[peers]"
	@CMAKE_ARGS="$(LLAMA_FLAGS)" $(PY) -m pip install -qq --disable-pip-version-check --constraint constraints.txt \
		--editable ".[llama]" || echo "llama.cpp could not be compiled: its row will say so"
	@$(PY) -m benchmarks $(NAME)

mutate: env ## break the code in small ways, one at a time; every break must make a test fail
	@$(PY) tools/mutate.py

lab: env ## JupyterLab on the chapters
	@$(PY) -m jupyterlab book

wheel: env ## build dist/lmsurvey_code-*.whl, the same bytes everywhere
	@$(PY) tools/site.py wheel

release: test ## check, tag the version in lmsurvey_code/__init__.py, and say what to push
	@$(PY) tools/site.py release

constraints: env ## write the versions in .venv to constraints.txt
	@$(PY) tools/site.py constraints

clean: ## remove the environments and everything that was built
	rm -rf .venv .venv-book _build dist .pytest_cache .ruff_cache

env:
	@$(PYTHON) tools/venv.py .venv book,dev

book-env:
	@$(PYTHON) tools/venv.py .venv-book book
