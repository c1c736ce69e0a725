# `make help` lists the targets. Override with: make venv PYTHON=/path/to/python3.12
PYTHON ?= python3
ARGS ?=
workers ?= 2

# Files in their order: the long ones are not among the last.
parallel = -n $(workers) --dist loadfile --no-loadscope-reorder

bin := .venv/bin
installed := .venv/.installed
installed_bench := .venv/.installed-bench

# Spark 3.5, as managed platforms and Petastorm have it: the same code in an environment of its own.
bin35 := .venv-spark35/bin
installed35 := .venv-spark35/.installed
tests35 ?= tests

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:  # the checks come before the install also with -j
.PHONY: help venv venv-spark35 run test test-unit test-spark35 test-petastorm faults lint format type bench wheel notebooks ui clean docs docs-test screenshots browser check-java

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

venv: $(installed)  ## install sparktrain and everything it needs into .venv (once, a few minutes)

venv-spark35: $(installed35)  ## install the same with Spark 3.5 and Petastorm into .venv-spark35

run: check-java $(installed)  ## prepare, train and register the example pipeline; more options in ARGS="…"
	@$(bin)/sparktrain run conf/flight_delays.yaml $(ARGS)

test: check-java $(installed)  ## run every test except the benchmarks, two files at a time (workers=0: one); pytest options in ARGS="…"
	@$(bin)/pytest $(parallel) $(ARGS)

test-unit: $(installed)  ## run the fast tests: no Java, one process
	@$(bin)/pytest -m "not spark and not ranks" $(ARGS)

faults: check-java $(installed)  ## break ranks, executors, drivers and files on purpose, and print what came of it
	@$(bin)/pytest -q tests/faults $(ARGS)

test-spark35: check-java $(installed35)  ## run the tests on Spark 3.5, Petastorm's among them; pytest options in ARGS="…"
	@$(bin35)/pytest $(parallel) $(tests35) $(ARGS)

test-petastorm: check-java $(installed35)  ## run the tests that need Petastorm, on Spark 3.5; pytest options in ARGS="…"
	@$(bin35)/pytest tests/peers/test_petastorm*.py $(ARGS)

lint: $(installed)  ## check style and formatting
	@$(bin)/ruff check
	@$(bin)/ruff format --check

format: $(installed)  ## correct formatting and what the linter can correct by itself
	@$(bin)/ruff format
	@$(bin)/ruff check --fix

type: $(installed)  ## check types, strictly
	@$(bin)/mypy --strict sparktrain

bench: check-java $(installed_bench)  ## run the benchmarks and print their tables (Petastorm: make venv-spark35 first)
	@$(bin)/pytest -s -p no:cacheprovider tests/benchmarks $(ARGS)

docs: $(installed)  ## build the documents as a site in build/docs; every warning is an error
	@rm -rf build/docs build/doctrees
	@$(bin)/sphinx-build -q -W --keep-going -b html -d build/doctrees docs build/docs
	@echo "build/docs/index.html"

docs-test: check-java $(installed)  ## run what README.md and docs/ tell people to run
	@$(bin)/pytest tests/test_readme.py tests/test_docs.py tests/test_site.py tests/integration/test_readme_commands.py $(ARGS)

browser:  ## install Chromium and its driver by apt, for the tests that look at pages
	@.ci/get-browser

screenshots: check-java $(installed)  ## take the pictures in docs/images anew, of a run of all the flights
	@SPARKTRAIN_SCREENSHOTS=docs/images $(bin)/pytest tests/integration/test_pages.py $(ARGS)

wheel: $(installed)  ## build dist/*.whl and check that it holds sparktrain and nothing else
	@rm -rf dist
	@$(bin)/pip wheel -qq --disable-pip-version-check --no-deps --wheel-dir dist .
	@$(bin)/python .ci/check-wheel dist/*.whl

notebooks: $(installed)  ## write notebooks/ as build/notebooks/*.ipynb, for Jupyter
	@$(bin)/python -m tests.fixtures.databricks_source notebooks build/notebooks

ui: $(installed)  ## show the runs under out/ in the browser, for this machine only
	@test -f out/mlflow.db || { echo "There are no runs under out/ yet: start one with 'make run'." >&2; exit 1; }
	@PYTHONWARNINGS=ignore $(bin)/mlflow ui --workers 1 --backend-store-uri sqlite:///out/mlflow.db --host 127.0.0.1 $(ARGS)

clean:  ## remove what building and testing leave behind; keeps the environments and out/
	@rm -rf build dist *.egg-info spark-warehouse metastore_db derby.log
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -path './.venv*' -prune -o -path ./out -prune -o -name __pycache__ -type d -exec rm -rf {} +

# An editable install follows the sources by itself: only these files call for a new one.
$(installed): pyproject.toml constraints.txt
	@.ci/check-python '$(PYTHON)'
	@echo "Installing into .venv: a few minutes the first time, 2 GB or more."
	@'$(PYTHON)' -m venv .venv
	@$(bin)/pip install -qq --disable-pip-version-check --no-input -c constraints.txt -e '.[flights,dev,docs]'
	@touch $@

$(installed_bench): $(installed)
	@$(bin)/pip install -qq --disable-pip-version-check --no-input -c constraints.txt -e '.[bench]'
	@touch $@

$(installed35): pyproject.toml constraints-spark35.txt
	@.ci/check-python '$(PYTHON)'
	@echo "Installing into .venv-spark35: a few minutes the first time, 2 GB or more."
	@'$(PYTHON)' -m venv .venv-spark35
	@$(bin35)/pip install -qq --disable-pip-version-check --no-input \
		-c constraints-spark35.txt -e '.[petastorm,flights,dev]'
	@touch $@

check-java:
	@.ci/check-java
