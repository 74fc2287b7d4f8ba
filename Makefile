# make train: everything from a clean checkout to an evaluated run on the synthetic sample.
# make test:  everything from a clean checkout to the tests; TESTS=tests/images for those of a folder.
# make claim: a ResNet50 and a plain CNN on the same split, and their comparison; CONFIG=config.yaml for the real data.
# make real: cross-validations of real features, which are in examples/, and one table of them; needs no data set.
# make grid: a run for each combination of the values in SETTINGS, JOBS at a time, and their comparison.
# make study: nested cross-validations of all combinations of the values in STUDY, and the paired differences between
#   them: what helps on new patients, and what on known ones; CONFIG=real.yaml needs no data set.
# make protocols: a run on the sample under each protocol, and their comparison; SEEDS="0 1 2 3 4" for five of each.
# make intervals: how often each kind of 95 % interval holds the true value, simulated: the tables of docs/intervals.md.
# make docs: writes docs/settings.md from the schema of the settings.

# Each Python that is looked for, in this order, and the stack that it gets: TensorFlow Addons, or Keras 3.
# STACK=addons and STACK=keras3 choose the stack; PYTHON=... gives the interpreter.
STACK :=
PYTHON :=
CHOICES_ := 3.11/addons 3.12/keras3 3.13/keras3 3.10/addons 3.9/addons
CHOICES_addons := 3.11/addons 3.10/addons 3.9/addons
CHOICES_keras3 := 3.13/keras3 3.12/keras3 3.11/keras3 3.10/keras3
FOUND := $(shell for choice in $(CHOICES_$(STACK)); do version=$${choice%/*}; \
	for python in $(or $(PYTHON),python$$version python3 python); do \
	$$python -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$$version')" 2>/dev/null && \
	echo $$python $$choice && exit; done; done)
CHOICE := $(lastword $(FOUND))
REQUIREMENTS := requirements$(if $(filter %keras3,$(CHOICE)),-keras3).txt
CONSTRAINTS := $(REQUIREMENTS:requirements%=constraints%)
TESTED := 3.11/addons 3.12/keras3 3.13/keras3
PINS := $(if $(filter $(TESTED),$(CHOICE)),-c $(CONSTRAINTS))
VENV := .venv$(if $(filter %keras3,$(CHOICE)),-keras3)
RUN := $(VENV)/bin/python
TESTS :=
SEEDS := 0
BASES := resnet50 cnn
CONFIG := sample.yaml
SETTINGS := data.protocol=row,patient data.seed=0,1
STUDY := data.protocol=image,patient model.standardize=true,false
JOBS := 1

.PHONY: train real study protocols claim grid intervals test lint docs

train: $(VENV)/ready
	$(RUN) sample.py sample
	name=sample-$$(date +%Y%m%d-%H%M%S) && \
	$(RUN) train.py --config sample.yaml train.run=$$name && \
	$(RUN) evaluate.py runs/$$name

# A row is one of an image's five lines in Folds.csv, so every fold of rows tests images that are also in training.
real: $(VENV)/ready
	name=runs/real-$$(date +%Y%m%d-%H%M%S) && runs= && \
	for protocol in image slide patient fold; do \
		run=$$name-$$protocol && runs="$$runs $$run" && \
		case $$protocol in fold) set -- --official;; *) set -- data.protocol=$$protocol;; esac && \
		$(RUN) crossval.py $${run#runs/} --config real.yaml --folds-only "$$@" || exit; done && \
	$(RUN) evaluate.py $$runs && \
	echo "row: not cross-validated, because a row is one of an image's five lines in Folds.csv; train.py measures it"

protocols: $(VENV)/ready
	$(RUN) sample.py sample
	$(RUN) grid.py $$(date +%Y%m%d-%H%M%S) --config sample.yaml --jobs $(JOBS) \
		data.protocol=row,image,slide,patient,fold data.seed=$$(echo $(SEEDS) | tr ' ' ,)

claim: $(VENV)/ready
	$(RUN) sample.py sample
	stamp=$$(date +%Y%m%d-%H%M%S) && runs= && \
	for seed in $(SEEDS); do for base in $(BASES); do \
		run=$$stamp-$$base-$$seed && runs="$$runs runs/$$run" && set --; \
		test $$base = cnn && set -- train.maximal_lr=0.05; \
		$(RUN) train.py --config $(CONFIG) model.base=$$base data.seed=$$seed train.run=$$run "$$@" || exit; done; done && \
	$(RUN) evaluate.py $$runs

grid: $(VENV)/ready
	$(RUN) sample.py sample
	$(RUN) grid.py grid-$$(date +%Y%m%d-%H%M%S) --config $(CONFIG) $(SETTINGS) --jobs $(JOBS)

study: $(VENV)/ready
	$(if $(filter sample.yaml,$(CONFIG)),$(RUN) sample.py sample)
	$(RUN) grid.py study-$$(date +%Y%m%d-%H%M%S) --crossval --config $(CONFIG) $(STUDY) --jobs $(JOBS)

intervals: $(VENV)/ready
	$(RUN) -m tests.interval_coverage

test: lint
	$(RUN) -m pytest $(TESTS)

# import-linter takes packages only, so each file at the top level is shown to it as one.
lint: $(VENV)/ready-test
	$(RUN) -m ruff check --no-cache .
	rm -rf .imports && for file in *.py; do \
		mkdir -p .imports/$${file%.py} && ln -s ../../$$file .imports/$${file%.py}/__init__.py || exit; done
	for folder in */__init__.py; do ln -s ../$${folder%/*} .imports/; done
	cd .imports && ../$(VENV)/bin/lint-imports --no-cache ../pyproject.toml

docs: $(VENV)/ready
	PYTHONPATH=. $(RUN) docs/settings.py

$(VENV)/bin/python:
	@test -n "$(FOUND)" || { echo "error: needed is Python 3.9 to 3.11 for TensorFlow Addons (STACK=addons)" \
		"or 3.10 to 3.13 for Keras 3 (STACK=keras3), found was none" >&2; exit 2; }
	$(firstword $(FOUND)) -m venv $(VENV)

$(VENV)/ready: $(REQUIREMENTS) $(CONSTRAINTS) $(VENV)/bin/python
	@echo "Python $(subst /, with ,$(CHOICE)), in $(VENV): installing $(REQUIREMENTS), which takes some minutes"
	$(RUN) -m pip install --quiet --disable-pip-version-check $(PINS) -r $(REQUIREMENTS)
	touch $@

$(VENV)/ready-test: requirements-test.txt $(VENV)/ready
	$(RUN) -m pip install --quiet --disable-pip-version-check $(PINS) -r $(REQUIREMENTS) -r requirements-test.txt
	touch $@
