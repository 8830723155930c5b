# make run: the environment, then the main job on the bundled sample. make test: the test suite.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
READY := $(VENV)/.ready
CODE := recbole_llm tests bench run_recbole_llm.py setup.py

# as the command line sets it, see recbole_llm/cli.py
export GOMP_SPINCOUNT = 10000

.PHONY: install run lint types format test test-slow wheel bench

install: $(READY)

# RecBole comes second, without its dependencies: it pins ray<=2.6.3, which can't be met.
$(READY): setup.cfg setup.py pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[all,test]"
	$(BIN)/python -m pip install -q --no-deps recbole==1.2.1
	touch $@

run: install
	$(BIN)/python run_recbole_llm.py --model=CALRec --dataset=Pet

lint: install
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)

# types: strict for the packages that others build on, see pyproject.toml
types: install
	$(BIN)/mypy recbole_llm

format: install
	$(BIN)/ruff format $(CODE)

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow" $(PYTEST_OPTIONS) tests

test-slow: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m slow $(PYTEST_OPTIONS) tests

# the package as a user installs it, in an environment of its own
wheel: install
	.ci/wheel $(BIN)/python

bench: install
	for script in bench/*.py; do $(BIN)/python $$script --small || exit 1; done
