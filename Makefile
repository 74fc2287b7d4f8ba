# make train: everything from a clean checkout to an evaluated run on the synthetic sample.
# make test:  everything from a clean checkout to the tests.
# make claim: a ResNet50 and a plain CNN on the same split, and their comparison; CONFIG=config.yaml for the real data.
# make grid: a run for each combination of the values in SETTINGS, JOBS at a time, and their comparison.
# make protocols: a run on the sample under each protocol, and their comparison; SEEDS="0 1 2 3 4" for five of each.
# make intervals: how often each kind of 95 % interval holds the true value, simulated: the tables of docs/intervals.md.
# make docs: writes docs/settings.md from the schema of the settings.

PYTHON := $(shell for p in python3.11 python3.10 python3.9 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 11))' 2>/dev/null && echo $$p && break; done)
PINS = $(shell $(PYTHON) -c 'import sys; print("-c constraints.txt" if sys.version_info[:2] == (3, 11) else "")')
RUN := .venv/bin/python
SEEDS := 0
BASES := resnet50 cnn
CONFIG := sample.yaml
SETTINGS := data.protocol=row,patient data.seed=0,1
JOBS := 1

.PHONY: train protocols claim grid intervals test lint docs

train: .venv/ready
	$(RUN) sample.py sample
	name=sample-$$(date +%Y%m%d-%H%M%S) && \
	$(RUN) train.py --config sample.yaml train.run=$$name && \
	$(RUN) evaluate.py runs/$$name

protocols: .venv/ready
	$(RUN) sample.py sample
	$(RUN) grid.py $$(date +%Y%m%d-%H%M%S) --config sample.yaml --jobs $(JOBS) \
		data.protocol=row,image,slide,patient,fold data.seed=$$(echo $(SEEDS) | tr ' ' ,)

claim: .venv/ready
	$(RUN) sample.py sample
	stamp=$$(date +%Y%m%d-%H%M%S) && runs= && \
	for seed in $(SEEDS); do for base in $(BASES); do \
		run=$$stamp-$$base-$$seed && runs="$$runs runs/$$run" && set --; \
		test $$base = cnn && set -- train.maximal_lr=0.05; \
		$(RUN) train.py --config $(CONFIG) model.base=$$base data.seed=$$seed train.run=$$run "$$@" || exit; done; done && \
	$(RUN) evaluate.py $$runs

grid: .venv/ready
	$(RUN) sample.py sample
	$(RUN) grid.py grid-$$(date +%Y%m%d-%H%M%S) --config $(CONFIG) $(SETTINGS) --jobs $(JOBS)

intervals: .venv/ready
	$(RUN) -m tests.interval_coverage

test: lint
	$(RUN) -m pytest

# import-linter takes packages only, so each file at the top level is shown to it as one.
lint: .venv/ready-test
	$(RUN) -m ruff check --no-cache .
	rm -rf .imports && for file in *.py; do \
		mkdir -p .imports/$${file%.py} && ln -s ../../$$file .imports/$${file%.py}/__init__.py || exit; done
	for folder in */__init__.py; do ln -s ../$${folder%/*} .imports/; done
	cd .imports && ../.venv/bin/lint-imports --no-cache ../pyproject.toml

docs: .venv/ready
	PYTHONPATH=. $(RUN) docs/settings.py

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "error: Python 3.9, 3.10 or 3.11 is needed (TensorFlow Addons ends there), none was found" >&2; exit 2; }
	$(PYTHON) -m venv .venv

.venv/ready: requirements.txt constraints.txt .venv/bin/python
	$(RUN) -m pip install --quiet --disable-pip-version-check $(PINS) -r requirements.txt
	touch $@

.venv/ready-test: requirements-test.txt .venv/ready
	$(RUN) -m pip install --quiet --disable-pip-version-check $(PINS) -r requirements-test.txt
	touch $@
