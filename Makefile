# Every target sets up what it needs in .venv by itself; a second call is instant.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo doctor test soak chaos check format dashboards docs bench package hooks clean

# the interpreter .venv is made with: the first of these that is 3.11 or newer, or the one you name
PYTHON ?=
VENV := .venv
RUN := $(VENV)/bin/python
ARGS ?=

help: ## show this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 20
	@echo "  ARGS=\"...\" is passed on: make test ARGS=\"tests/test_config.py -k unit\""

demo: $(VENV)/.runtime ## a simulated AI factory on this screen; DEMO_SECONDS=40 ends it by itself
	@$(RUN) -m idlewatt.cli.main demo $(ARGS)

doctor: $(VENV)/.runtime ## check driver, engines, Kafka, clock, configuration
	@$(RUN) -m idlewatt.cli.main doctor $(ARGS)

test: $(VENV)/.test ## run every test, real Kafka, Prometheus and NVML included
	@$(RUN) -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

soak: $(VENV)/.test ## try the property tests with ten times as many examples, others each time
	@$(RUN) -m pytest -n auto --maxprocesses 4 -m hypothesis --hypothesis-profile soak --timeout 0 $(ARGS)

chaos: $(VENV)/.test ## kill, freeze and mislead a real pipeline, then check every figure; SEED=1 FAULTS=200 BROKERS=1
	@$(RUN) tests/chaos.py --seed $(or $(SEED),1) --faults $(or $(FAULTS),200) --brokers $(or $(BROKERS),1)

check: $(VENV)/.check ## lint, formatting and types
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

format: $(VENV)/.check ## put the code into its one shape
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

dashboards: $(VENV)/.runtime ## write dashboards, rules and provisioning into deploy/
	@$(RUN) -m idlewatt.cli.main dashboards --out deploy

docs: $(VENV)/.runtime ## write docs/configuration.md and the table of metrics in README.md
	@$(RUN) docs/generate.py

bench: $(VENV)/.test ## measure speed, beside peers; BENCH=processor GPUS=100000 runs one part, PROFILE=1 says where time goes
	@BENCH="$(BENCH)" GPUS="$(GPUS)" PROFILE="$(PROFILE)" SHAPE="$(SHAPE)" UPDATE="$(UPDATE)" $(RUN) -m bench

package: $(VENV)/.check ## build the wheel and the source archive into dist/
	@$(RUN) -m pip install -q build && $(RUN) -m build

hooks: $(VENV)/.check ## let git run `make check` before each commit
	@$(VENV)/bin/pre-commit install

clean: ## remove what was made here, .venv and downloads included
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Runtime, tests and checks are set up apart: a demo downloads no test tools.
$(VENV)/.runtime: pyproject.toml | $(VENV)/bin/python
	@echo "setting up $(VENV): this takes a minute, once"
	@# setuptools warns of a danger to others: here the folders are the packages
	@PYTHONWARNINGS=ignore $(RUN) -m pip install -q --disable-pip-version-check -e .
	@touch $@

$(VENV)/.test: $(VENV)/.runtime
	@$(RUN) -m pip install -q --disable-pip-version-check --group test
	@touch $@

$(VENV)/.check: $(VENV)/.test
	@$(RUN) -m pip install -q --disable-pip-version-check --group check
	@touch $@

# --group came with pip 25.1
$(VENV)/bin/python:
	@found=; \
	for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11); do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "Idlewatt needs Python 3.11 or newer, and $(or $(PYTHON),python3) is none:" \
	    "install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; \
	fi; \
	if ! $$found -c 'import ensurepip, venv' 2>/dev/null; then \
	  echo "$$found cannot make virtual environments: on Debian and Ubuntu, apt-get install python3-venv" >&2; exit 1; \
	fi; \
	$$found -m venv --clear $(VENV) && \
	$(RUN) -m pip install -q --disable-pip-version-check --upgrade 'pip>=25.1'
