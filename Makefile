# Two commands do everything on a bare machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python -m peftbench

SMOKE := results/reference/ci_smoke
EIGHT := full lora qlora adapter adapter-parallel prefix ia3 dora

.PHONY: quickstart env test test-fast test-browser test-all planted-bugs kill-storm fuzz lint smoke verify published ci-records gpu lock docs \
	clean

quickstart: $(VENV)/.installed
	$(RUN) fetch
	$(RUN) run experiments/quickstart.yaml $(EIGHT:%=--only method=%)

env: $(VENV)/.installed

# Two processes of one thread each: the tests' tensors are too small to share. A process without work takes the other's.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test: $(VENV)/.installed
	$(PYTEST) -m "not full and not browser" --durations=25

# What takes no more than about a second each, and no data that must be fetched.
test-fast: $(VENV)/.installed
	$(PYTEST) -m "not full and not slow and not embedded and not browser"

# Pages in a Chromium of this machine; without one they are skipped, and say so.
test-browser: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m browser tests/browser

# The whole matrix of the contract too: every setting of every method on every network.
test-all: $(VENV)/.installed
	$(PYTEST) --durations=25

# Every bug planted in tests/helpers/planted_bugs.py, and the promises of the contract that catch it.
planted-bugs: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python scripts/planted_bugs.py --write docs/planted-bugs.md

# A hundred kills of a grid's workers and runner, and what they did; some 20 minutes on two cores.
kill-storm: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python scripts/kill_storm.py --kills 100

# Odd inputs by the thousand, to every command that reads files of a user: none may crash, hang, or leave its folder.
fuzz: $(VENV)/.installed
	$(BIN)/python scripts/fuzz.py

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python scripts/house.py

# The whole pipeline, every method, from nothing.
smoke: $(VENV)/.installed
	rm -rf build/ci_smoke
	OMP_NUM_THREADS=1 $(RUN) run experiments/ci_smoke.yaml --results build/ci_smoke --quiet

# Committed records of the same, some of them run again and compared; all that is published, made again and compared.
verify: $(VENV)/.installed
	$(RUN) verify $(SMOKE) --sample 8 --quiet
	$(BIN)/python scripts/published.py --check

# Every committed table and figure again, from the committed records; says which files changed.
published: $(VENV)/.installed
	$(BIN)/python scripts/published.py

# Makes these records anew, after a change that is meant to alter results.
ci-records: $(VENV)/.installed
	rm -rf $(SMOKE)/runs
	OMP_NUM_THREADS=1 $(RUN) run experiments/ci_smoke.yaml --results $(SMOKE)
	$(BIN)/python scripts/results_readme.py

gpu: $(VENV)/.installed
	bash scripts/gpu_check.sh

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "peftbench needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps -e .
	@touch $@

# Rewrites the pinned versions from the environment as it is now.
lock:
	{ sed -n '/^#/p' requirements.lock; $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//'; } > requirements.lock.new
	mv requirements.lock.new requirements.lock

# The site of docs/ with the API reference, in build/site; every warning is an error.
docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .grimp_cache
