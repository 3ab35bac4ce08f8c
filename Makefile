# Each target sets up .venv when it is missing or older than the pinned versions.
PYTHON ?= python3
BIN := .venv/bin
# Test workers share the cores: one thread each.
WORKERS ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)

.PHONY: demo test test-quick lint docs bench clean

demo: .venv/ready
	$(BIN)/python examples/flow_posterior.py

test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --durations=15

test-quick: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/docs
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

bench: .venv/ready
	for name in training_step epoch log_marginal ais scaling memory imports; do $(BIN)/python -m benchmarks.$$name || exit 1; done

.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test,benchmarks]'
	touch $@

.venv/docs: .venv/ready
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	touch $@

clean:
	rm -rf .venv docs/_build runs
