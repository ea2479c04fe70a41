# The two commands that a fresh machine with Python 3.11+ needs: `make train` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# One process of tests for each core, and one thread for each process; files in order, as the long ones come before the short.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder
CPP := src/ddpm/kernels/*.cpp
WARNINGS := -std=c++17 -march=native -fopenmp -Wall -Wextra -Wshadow -Wconversion -Werror
ARGS ?=

.PHONY: train test fast nightly bench lint format clean

train: .venv/installed
	$(BIN)/python train.py $(ARGS)

test: .venv/installed
	$(PYTEST) $(ARGS)

fast: .venv/installed
	$(PYTEST) -m "not slow" $(ARGS)

nightly: .venv/installed
	DDPM_KILLS=20 $(PYTEST) $(ARGS)

bench: .venv/installed
	$(BIN)/python -m pip install --quiet --editable ".[bench]"
	$(BIN)/python benchmarks/speed.py docs/benchmarks

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP)
	$(CXX) $(WARNINGS) -fsyntax-only $(CPP)

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

.venv/installed: pyproject.toml
	@echo "Installing into .venv: on Linux, pip downloads about 3 GB and unpacks it to about 6 GB,"
	@echo "nearly all of it the CUDA libraries of torch, which PyPI offers in this one build."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv build src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
