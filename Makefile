# Every command is one that you could type yourself; make help lists them.
PYTHON ?= python3
VENV ?= .venv
TORCH ?=
ARGS ?=
BIN = $(VENV)/bin
SETUP = command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found. Run: sudo apt-get install python3 python3-venv (macOS: brew install python)" >&2; exit 2; }; $(PYTHON) .ci/setup.py --venv '$(VENV)' --torch '$(TORCH)'

.DEFAULT_GOAL := help
.PHONY: help setup setup-all demo test test-slow test-all notebooks lab student lint format clean

help:  ## list what make can do
	@sed -n 's/^\([a-z-]*\):.*## /make \1 — /p' $(firstword $(MAKEFILE_LIST))
	@echo 'With: PYTHON=python3.12  VENV=/path/with/space  TORCH="torch==2.13.0"  ARGS="-k tiling" (for pytest)'

setup:  ## make .venv with what the notebooks and the tests need; does nothing when it is there
	@$(SETUP)

setup-all:  ## the same, by its earlier name
	@$(SETUP) --level all

demo:  ## fine-tune the embedded model on handwritten digits: before, after, a report
	@$(SETUP) --level demo
	$(BIN)/python -m ivlkit demo

test: setup  ## run the tests that a change needs, in some minutes
	$(BIN)/python -m pytest --ignore=tests/notebooks -n 2 --dist worksteal -m "not slow" $(ARGS)

test-slow: setup  ## run the rest: kill matrices, launchers, fresh processes, compile matrices, the curriculum
	$(BIN)/python -m pytest --ignore=tests/notebooks -n 2 --dist worksteal -m slow $(ARGS)

test-all: test test-slow  ## run all tests but the notebooks

notebooks: setup  ## execute the course and check each notebook's results
	$(BIN)/python -m pytest tests/notebooks -n 2 --dist load --maxschedchunk 1 $(ARGS)

lab: setup  ## open copies of the notebooks in JupyterLab, in work/; yours are never overwritten
	$(BIN)/python -m ivlkit notebooks work
	$(BIN)/jupyter lab --notebook-dir=. --LabApp.default_url=/lab/tree/work $(ARGS)

student: setup  ## write copies without solutions and outputs to student/
	$(BIN)/python -m ivlkit notebooks student --for-students

lint: setup  ## check style, code and notebooks
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: setup  ## mend what lint can mend by itself
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## remove .venv and every cache; runs and downloaded models stay
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build ivlkit.egg-info
	find ivlkit tests notebooks .ci benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
