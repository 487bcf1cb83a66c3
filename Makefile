# Two commands for a new clone: `make run` and `make test`. Both need Python 3.11 or later and nothing else.
PYTHON ?= python3
VENV ?= .venv

.PHONY: run test check clean

run: $(VENV)/installed
	$(VENV)/bin/python -m hpo.run experiments/cifar_lr_dropout.py --quick

test: $(VENV)/installed
	$(VENV)/bin/python -m pytest

check: $(VENV)/installed
	$(VENV)/bin/ruff format --check hpo tests benchmarks experiments
	$(VENV)/bin/ruff check hpo tests benchmarks experiments
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
