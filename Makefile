# make demo            synthetic cohort -> extract -> train -> evaluate -> predict a new slide
# make demo DATA=DIR   the same on real slides in any layout the readers know
# make test            the test suite
# make lint            ruff and clang-format
# make results         RESULTS.md's table from HER2ST=DIR (hours on a laptop)
# make zoo             RESULTS.md's table of every model, from HER2ST=DIR and its DIR_A1 (three hours)

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: demo test lint results zoo clean

$(READY): requirements.txt pyproject.toml setup.py $(wildcard csrc/*.* csrc/*/*)
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet -r requirements.txt
	$(PY) -m pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

DATA ?=
DEMO := work/$(if $(DATA),$(notdir $(patsubst %/,%,$(DATA))),demo)
FOLDS ?= $(if $(DATA),auto,2)
MODELS ?= mean ridge-low-rank bpbooster histoprism
# what a model takes beside its preset: fewer epochs for what would take longest
ARGS_histoprism := $(if $(DATA),--epochs 50,--epochs 15 --val-fraction 0)

demo: $(READY)
	$(if $(DATA),,$(PY) -m histokit.data.synthetic --out $(DEMO)/cohort)
	$(PY) run_extract.py --source $(or $(DATA),$(DEMO)/cohort) --out $(DEMO)/data
	$(foreach model,$(MODELS),$(PY) run_train.py --data $(DEMO)/data --model $(model) --preset small \
	  $(ARGS_$(model)) --folds $(FOLDS) --run $(DEMO)/runs/$(model) &&) true
	$(PY) run_eval.py --run $(MODELS:%=$(DEMO)/runs/%) $(if $(word 2,$(MODELS)),--out $(DEMO)/report)
	$(if $(DATA),,$(PY) run_predict.py --run $(DEMO)/runs/$(lastword $(MODELS)) --cancer IDC \
	  --source $(DEMO)/cohort/new/IDC-4.tif --out $(DEMO)/maps)

# two workers, a module each at a time; each has one thread (numba would set torch's to all cores)
test: $(READY)
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadscope --no-loadscope-reorder --durations=10

include build.mk

lint: $(READY) lint-cpp
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

HER2ST ?= ../shared/data/her2st

results: $(READY)
	$(PY) benchmarks/her2st.py --source $(HER2ST)

zoo: $(READY)
	$(PY) benchmarks/zoo.py --source $(HER2ST) --third $(HER2ST)_A1

clean:
	rm -rf $(VENV) build work *.egg-info histokit/*.so
