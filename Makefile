# Quotes stand around whatever may hold a space, as the path of this folder may; make itself would cut it there.
# Everything runs inside .venv, which the first target that needs it creates; nothing has to be activated.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check -q
STAMP := $(VENV)/.installed
# `--all`: a page that computes its numbers must be computed again although its text is unchanged.
BOOK := $(PY) book/build.py build --all -W --keep-going
CONTENTS := $(PY) -m datadream contents
SMOKE := _build/smoke
# The site that `make site-test` looks at; `make site-test SITE=_build/html` takes the book itself.
SITE ?= $(SMOKE)/_build/html
# Named runs at once: two processes of one thread use two cores better than one process of two threads.
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help venv study study-full study-ablations book test lint lab fault-test smoke site-test base clean

help:  ## show this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-20s %s\n", $$1, $$2}'

venv: $(STAMP)  ## create .venv and install the locked versions (every other target does this first)

# An existing .venv is kept and brought to the lock; one that was left half-made (no pip) is made again.
$(STAMP): requirements.lock pyproject.toml
	@"$$(test -x $(PY) && echo $(PY) || echo "$(PYTHON)")" -c 'import sys; sys.version_info >= (3, 11) or sys.exit( \
	  "Python 3.11 or later is needed, this is " + sys.version.split()[0] + " (" + sys.executable + "). Name a later one: " \
	  "make PYTHON=python3.12 ... (and remove .venv if it is the old one)")'
	@$(PY) -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv $(VENV)
	@echo "installing the locked versions into $(VENV) (the first time takes a minute or more) ..."
	@$(PY) .ci/install.py requirements.lock
	@$(PIP) install --no-deps -e .
	@$(PY) -m ipykernel install --sys-prefix >/dev/null  # its kernel is this Python, whatever PATH says
	@$(PY) .ci/compiled.py  # once, here, where each process would else do it again: see there
	@mkdir -p $(VENV)/etc/ipython  # a kernel warns of plain text on a port of this machine, about which nobody can do anything
	@echo 'c.IPKernelApp.log_level = "ERROR"' > $(VENV)/etc/ipython/ipython_kernel_config.py
	@touch $@

study: venv  ## run the pending runs of notebooks/study.yaml, then build the book
	@$(call study_and_book,)

study-full: venv  ## the full comparison on both datasets, in pieces (4 hours on two cores), kept in book/study, then the book
	@$(call study_and_book,$(PY) -m datadream study --group full || status=$$?; $(PY) -m datadream keep || status=$$?;)

study-ablations: venv  ## one setting at a time (2 hours on two cores), kept in book/study, then the book
	@$(call study_and_book,$(PY) -m datadream study --group ablations || status=$$?; $(PY) -m datadream keep --group ablations || status=$$?;)

# The book is built even if a run failed, so that what succeeded can be read; the exit status tells of either. How the results
# agree with the committed ones, which fails nothing, and which run failed come last, since the book's output is long.
define study_and_book
status=0; $(PY) -m datadream study --jobs $(JOBS) || status=$$?; $(1) \
$(MAKE) --no-print-directory book || status=$$?; \
$(PY) -m datadream compare --brief || true; \
$(PY) -m datadream outcome || true; \
exit $$status
endef

book: venv  ## build _build/html from the runs that are there, warnings as errors
	@$(BOOK) . --toc "$$($(CONTENTS))"
	@test -s _build/html/index.html || { echo "the build ended without _build/html/index.html" >&2; exit 1; }
	@echo "the book: _build/html/index.html"

# One thread per process: two workers with a thread pool each are slower than two single threads on two cores.
test: venv  ## run the tests
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal -q

lint: venv  ## check format and code (ruff), types (basedpyright), floors (import-linter) and what lies in contrib
	@$(VENV)/bin/ruff format --check .ci book datadream tests benchmarks notebooks
	@$(VENV)/bin/ruff check .ci book datadream tests benchmarks notebooks
	@$(VENV)/bin/basedpyright --pythonpath $(PY)
	@$(VENV)/bin/lint-imports
	@$(PY) -m datadream check-submission

lab: venv  ## open the notebooks in JupyterLab; LAB="--no-browser --port 9000" and the like is passed on
	@$(VENV)/bin/jupyter lab $(LAB) notebooks

# One at a time: a cluster that waits for a core takes its nodes for dead.
fault-test: venv  ## kill and stop processes and nodes in the middle of a study, and see that nothing is lost
	@OMP_NUM_THREADS=1 $(PY) -m pytest -m cluster -q

# The whole study and book at a tiny size, in a copy, so that neither its artifacts nor its pages mix with real ones.
smoke: venv  ## every notebook through papermill at a tiny size, the long tests, and the book from the former
	@$(PY) -m datadream study --smoke --jobs $(JOBS)
	@OMP_NUM_THREADS=1 $(PY) -m pytest -m long -n 2 --dist worksteal -q
	@export DATADREAM_HOME="$$PWD/$(SMOKE)" DATADREAM_STORE="$$PWD/$(SMOKE)/artifacts"; $(BOOK) $(SMOKE) --toc "$$($(CONTENTS))"
	@test -s $(SMOKE)/_build/html/index.html || { echo "the build ended without $(SMOKE)/_build/html/index.html" >&2; exit 1; }

site-test: venv  ## look at every page of a built site (SITE, by default that of `make smoke`) in a headless Chromium
	@test -s "$(SITE)/index.html" || { echo "there is no site in $(SITE): run make smoke, or make book and name it with SITE=_build/html" >&2; exit 1; }
	@DATADREAM_SITE="$$(cd "$(SITE)" && pwd)" $(PY) -m pytest -m site -q -rs tests/book/test_site.py

base: venv  ## train the embedded base models again from nothing (hours on two cores)
	@mkdir -p book/runs
	@$(PY) -m papermill notebooks/mini_base.ipynb book/runs/mini_base.ipynb -p retrain True

clean:  ## remove what was built and the executed notebooks; artifacts and .venv stay
	@rm -rf _build book/runs
