# Two commands need nothing but python3 and a package index:
#   make table    evaluate a real model, train ten small ones and print the tables of their perplexities
#   make test     the unit tests, in about five minutes
# make test-system runs what goes end to end, make test-all everything, make test-slice today's part of the
# extended tests (one in PARTS, in turn by date). make check looks at style, types and documents.
# make parity installs PyTorch and transformers too, and compares with them what make test skips.
# make extras installs the trackers, and the launchers and a sweeper of sweeps, and runs their tests.
PYTHON ?= python3
VENV   ?= .venv
RUN    := $(VENV)/bin/python
PYTEST := $(RUN) -m pytest --numprocesses 2 --dist loadfile
PARTS  ?= 12
ASK    ?=
QUIET  := NORMLAB_NOTICE=off
EXTRAS := test,browser,tensorboard,wandb,slurm,optuna

.PHONY: table test test-system test-all test-slice parity extras check docs clean

table: $(VENV)/.core
	$(RUN) -m evaluate pretrained=smollm2-135m out=results/smollm2-135m max_windows=8
	$(QUIET) $(RUN) -m train experiment=table $(ASK)
	$(QUIET) $(RUN) -m train experiment=table-post $(ASK)
	$(QUIET) $(RUN) -m train experiment=table-peri $(ASK)
	$(QUIET) $(RUN) -m evaluate runs=runs/table out=results/table max_windows=256
	@$(RUN) -m evaluate show results/smollm2-135m
	@echo "optimizer.lr: chosen for each placement by validation, in experiment=table-rates"
	@echo "(docs/results/ten-models.md). One seed and a short run: which norm is better, these tables do not say."

test: $(VENV)/.test
	$(PYTEST)

test-system: $(VENV)/.test
	$(PYTEST) -m "system and not extended"

test-all: $(VENV)/.test
	$(PYTEST) -m "not documents"

test-slice: $(VENV)/.extras
	$(PYTEST) -m extended --slice $(PARTS)

parity: $(VENV)/.parity
	$(RUN) -m pytest -m "not documents" tests/numerics/test_accumulate.py tests/pretrained/test_parity.py \
		tests/pretrained/export tests/torch_bridge

extras: $(VENV)/.extras
	$(RUN) -m pytest -rs -m "not documents" -k "track or launcher or sweeper" \
		tests/training/test_tracking.py tests/system/test_network.py tests/system/test_sweep.py

check: $(VENV)/.test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m pytest -m documents tests/documents

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --quiet --strict

$(VENV)/bin/pip:
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo "Installing normlab and what it needs into $(VENV): about a minute."
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo "Installing normlab and what its tests need into $(VENV): about a minute."
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@ $(VENV)/.core

$(VENV)/.parity: pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo "Installing PyTorch and transformers beside normlab into $(VENV): some minutes."
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,torch]'
	@touch $@ $(VENV)/.test $(VENV)/.core

$(VENV)/.extras: pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo "Installing trackers and launchers beside normlab into $(VENV): some minutes."
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@ $(VENV)/.test $(VENV)/.core

$(VENV)/.docs: pyproject.toml constraints.txt | $(VENV)/bin/pip
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) build site *.egg-info
