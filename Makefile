# Everything happens in .venv: one editable install of this tree, made by the first target that
# needs it and extended by the ones that need more. `make PYTHON=python3.13 hello` picks another
# interpreter. The two commands of the README are `make hello` and `make test`.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check

.PHONY: hello test parity slow metal check lint format bench bench-convert fuzz figures docs clean
.NOTPARALLEL: # one install at a time, and nothing beside a measurement

hello: $(VENV)/.installed
	$(VENV)/bin/glm-mlx generate --prompt "Hello"

test: $(VENV)/.installed-test
	$(RUN) -m pytest

parity: $(VENV)/.installed-parity
	$(RUN) -m pytest -m parity

slow: $(VENV)/.installed-test
	$(RUN) -m pytest -m slow

metal: $(VENV)/.installed-test
	$(RUN) -m pytest -m metal

check: lint test

lint: $(VENV)/.installed-dev
	$(RUN) -m ruff format --check
	$(RUN) -m ruff check
	$(RUN) -m mypy

format: $(VENV)/.installed-dev
	$(RUN) -m ruff format
	$(RUN) -m ruff check --fix

bench: $(VENV)/.installed-test
	$(RUN) tests/bench/bench.py

# The converter against mlx-lm, and stopped some thousand times; needs 30 GB of disk.
bench-convert: $(VENV)/.installed-test
	$(RUN) tests/bench/bench_convert.py

fuzz: $(VENV)/.installed-test
	$(RUN) tests/bench/fuzz_checkpoint.py
	$(RUN) tests/bench/fuzz_config.py

# Every figure the documents quote, each as JSON; takes hours.
figures: $(VENV)/.installed-parity fuzz bench bench-convert
	$(RUN) tests/bench/stream_exact.py
	$(RUN) tests/bench/tokenizer_parity.py
	$(RUN) tests/bench/exit_matrix.py
	$(RUN) tests/bench/parity_report.py

docs: $(VENV)/.installed-test
	$(RUN) docs/generate_cli.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The stamps: a second call installs nothing, a changed pyproject.toml installs again.

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("glm-mlx needs Python 3.11 or newer, this is %s %s: try make PYTHON=python3.13 hello" % (sys.executable, sys.version.split()[0]))'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.made
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml $(VENV)/.made
	$(INSTALL) --editable '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-parity: pyproject.toml $(VENV)/.made
	$(INSTALL) --editable '.[test,parity]'
	@touch $@ $(VENV)/.installed $(VENV)/.installed-test

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.made
	$(INSTALL) --editable '.[test,dev]'
	@touch $@ $(VENV)/.installed $(VENV)/.installed-test
