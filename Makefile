# make train: everything from a clean checkout to an evaluated run on the synthetic sample.
# make test:  everything from a clean checkout to the tests.
# make protocols: one run on the sample under each protocol, and the comparison.

PYTHON := $(shell for p in python3.11 python3.10 python3.9 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 11))' 2>/dev/null && echo $$p && break; done)
PINS = $(shell $(PYTHON) -c 'import sys; print("-c constraints.txt" if sys.version_info[:2] == (3, 11) else "")')
RUN := .venv/bin/python

.PHONY: train protocols test lint

train: .venv/ready
	$(RUN) sample.py sample
	name=sample-$$(date +%Y%m%d-%H%M%S) && \
	$(RUN) train.py --config sample.yaml train.run=$$name && \
	$(RUN) evaluate.py runs/$$name

protocols: .venv/ready
	$(RUN) sample.py sample
	stamp=$$(date +%Y%m%d-%H%M%S) && \
	for protocol in row image slide patient fold; do \
		$(RUN) train.py --config sample.yaml data.protocol=$$protocol train.run=$$protocol-$$stamp || exit; done && \
	$(RUN) evaluate.py runs/row-$$stamp runs/image-$$stamp runs/slide-$$stamp runs/patient-$$stamp runs/fold-$$stamp

test: .venv/ready-test
	$(RUN) -m ruff check .
	$(RUN) -m pytest

lint: .venv/ready-test
	$(RUN) -m ruff check .

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "error: Python 3.9, 3.10 or 3.11 is needed (TensorFlow Addons ends there), none was found" >&2; exit 2; }
	$(PYTHON) -m venv .venv

.venv/ready: requirements.txt constraints.txt .venv/bin/python
	$(RUN) -m pip install --quiet --disable-pip-version-check $(PINS) -r requirements.txt
	touch $@

.venv/ready-test: requirements-test.txt .venv/ready
	$(RUN) -m pip install --quiet --disable-pip-version-check $(PINS) -r requirements-test.txt
	touch $@
