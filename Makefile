# Two commands for a new clone: `make run` and `make test`. Both need Python 3.11 or later and nothing else.
PYTHON ?= python3
VENV ?= .venv

.PHONY: run test check clean

run: $(VENV)/installed
	$(VENV)/bin/python -m hpo.run experiments/cifar_lr_dropout.py --quick

# Those that start Ray mostly wait, so two of them run at a time; the others compute meanwhile, and give way.
test: $(VENV)/installed
	@echo "pytest -m integration, and beside it the rest"; \
	nice -n 19 $(VENV)/bin/python -m pytest -m "not integration" >$(VENV)/rest.log 2>&1 & rest=$$!; \
	$(VENV)/bin/python -m pytest -m integration --numprocesses 2 --dist loadscope; result=$$?; \
	wait $$rest || result=1; cat $(VENV)/rest.log; exit $$result

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
