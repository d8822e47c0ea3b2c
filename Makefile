# On a fresh machine: `make demo` trains and predicts, `make test` tests, `make docs` builds the pages.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-fast docs lint install

install: $(VENV)/.installed

$(VENV)/.installed: setup.cfg
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/segjax train --config=configs/demo.py --workdir=runs/demo
	$(BIN)/segjax predict runs/demo runs/demo/images/000800/*.image.jpg --overlay \
		--out runs/demo/predictions
	@echo "Open runs/demo/report.html, and the pictures in runs/demo/predictions"

# Two workers, a file of tests each at a time: most tests compile, on one core.
test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The inner loop: what needs no long compilation, in under 90 seconds on two cores.
FAST := tests/crf/test_kernels.py tests/data/test_images.py tests/data/test_labels.py \
	tests/models/test_layers.py tests/ops/test_normalize.py tests/predict/test_crf_choice.py \
	tests/predict/test_label_files.py tests/pretrained/test_files.py tests/test_config.py \
	tests/test_files.py tests/test_house.py tests/test_log.py tests/test_pages.py
test-fast: install
	$(BIN)/ruff check .
	$(BIN)/python -m pytest $(FAST)

docs: install
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/sphinx-build -W -q -j 2 -b html docs docs/_build/html

lint: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
