# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint install

install: $(VENV)/.installed

$(VENV)/.installed: setup.cfg
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev,export]'
	touch $@

demo: install
	$(BIN)/python train.py --config=configs/demo.py --workdir=runs/demo
	$(BIN)/python eval.py --workdir=runs/demo
	$(BIN)/segjax predict runs/demo runs/demo/images/000800/*.image.jpg --overlay \
		--out runs/demo/predictions

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
