# Each target sets up .venv when it is missing or older than the pinned versions.
PYTHON ?= python3
BIN := .venv/bin
# Test workers share the cores: one thread each.
WORKERS ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)
# What runs on other versions of the dependencies: models, training, evaluation, files, pictures.
VERSIONED := tests/model tests/training/test_fit.py tests/evaluation/test_log_marginal.py tests/test_plots.py

.PHONY: demo test test-quick test-types test-oldest test-newest lint docs bench clean

demo: .venv/ready
	$(BIN)/python examples/flow_posterior.py

test: .venv/ready
	$(PYTEST) --durations=15

test-quick: .venv/ready
	$(PYTEST) -m "not slow"

# Annotations and shapes are checked at run time. (What is left out counts stack frames, of which checks are some.)
FRAMES := tests/evaluation/test_compare.py::test_siblings_of_bad_input tests/fuzz/test_bad_inputs.py \
	tests/model/test_generation.py::test_a_row_that_makes_nan_is_named
test-types: .venv/ready
	PYROVAE_CHECK_TYPES=1 $(PYTEST) -o filterwarnings=default -m "not slow" $(FRAMES:%=--deselect %)

# The wheel, installed with the oldest or the newest versions that pyproject.toml allows.
test-oldest test-newest: test-%: .venv-%/ready
	rm -rf dist && $(BIN)/python -m pip wheel -q -c constraints.txt --no-deps -w dist .
	$(BIN)/python -m pip --python .venv-$*/bin/python install -q --no-deps --force-reinstall dist/*.whl
	cd dist && ../.venv-$*/bin/python ../.ci/story.py
	OMP_NUM_THREADS=1 .venv-$*/bin/python -m pytest -n $(WORKERS) -m "not slow" --durations=5 $(VERSIONED)

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

.venv-%/ready: constraints-%.txt pyproject.toml .venv/ready
	$(BIN)/python -m venv --clear --without-pip .venv-$*
	$(BIN)/python -m pip --python .venv-$*/bin/python install -q -c $< torch==2.13.0 pytest pytest-xdist .
	touch $@

clean:
	rm -rf .venv .venv-* dist docs/_build runs
