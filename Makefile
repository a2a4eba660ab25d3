# Everything is installed into .venv, from versions pinned in requirements.lock.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# ONNX Runtime comes in two builds that overwrite each other's files: CUDA's where a driver answers, else the CPU's.
RUNTIME := $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)

.PHONY: install demo test coverage lint lock clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.lock \
		--editable ".[$(RUNTIME),train,cluster,remote,score,signing,pretrained,bench,dev]"
	touch $@

demo: install
	PYTHON=$(BIN)/python ./demo.sh

test: lint
	$(BIN)/python -m pytest --numprocesses 2 --max-worker-restart 0 --dist loadfile -m "not ray" $(COVER)
	$(BIN)/python -m pytest -m ray $(COVER)

# The same tests take half as long again while lines are counted.
coverage: install
	$(BIN)/coverage erase
	$(MAKE) test COVER="--cov --cov-append --cov-report="
	$(BIN)/coverage report

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock:
	$(PYTHON) -m pip install --quiet uv
	$(PYTHON) -m uv pip compile pyproject.toml --universal --no-header --no-annotate --no-emit-index-url \
		--extra gpu --extra cpu --extra train --extra cluster --extra remote --extra score --extra signing --extra pretrained --extra bench --extra dev --output-file requirements.lock

clean:
	rm -rf $(VENV) runs models data
