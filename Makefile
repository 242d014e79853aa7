# make, or make help, lists the targets. Each one sets up .venv first if it is missing, or updates
# it if the requirements are newer.

# The Python that makes .venv. To change it later, run make clean first.
PYTHON ?= python3
# The folder of a local sync, with its configuration.json, warehouse and state. Git ignores it.
LOCAL ?= local
BIN = .venv/bin
READY = .venv/ready
# The folder that is packaged. It contains only the connector.
PACKAGE = build/connector

# A dollar sign in one of these values is part of the value, not a reference to a variable.
$(foreach name,CONNECTION DESTINATION LOCAL QUERY WAREHOUSE,\
	$(eval override $(name) := $$(value $(name))))
# The SDK searches PATH for the commands that it runs.
export PATH := $(PATH):$(CURDIR)/$(BIN)
export CONNECTION DESTINATION LOCAL QUERY WAREHOUSE

.PHONY: help demo check sync sql inspect package deploy test thorough lint bench clean
.PHONY: has-configuration

help: ## list the targets (make alone does the same)
	@sed -n 's/^\([a-z]*\):.*## /make \1 /p' Makefile | while read -r make target does; \
	do printf '%s %-9s %s\n' "$$make" "$$target" "$$does"; done

demo: $(READY) ## two syncs from a mock of Kustomer, with charts; needs no account
	@$(BIN)/python -m tools.demo

check: has-configuration ## test the settings, the key and its roles
	@$(BIN)/fivetran configuration "$$LOCAL" --test

sync: has-configuration ## sync your data to a warehouse on this machine
	@$(BIN)/fivetran debug "$$LOCAL" --configuration configuration.json

sql: $(READY) ## count the rows of that warehouse, or ask it with QUERY="select ..."
	@$(BIN)/python -m tools.sql -- "$${WAREHOUSE:-$$LOCAL/files/warehouse.db}" "$$QUERY"

inspect: $(READY) ## compare your Kustomer with what the connector expects
	@$(BIN)/python -m tools.inspect "$$LOCAL"

package: $(READY) ## build a zip file for Fivetran's API
	@mkdir -p $(PACKAGE) && cp connector.py $(PACKAGE)
	$(BIN)/fivetran package $(PACKAGE) --yes

deploy: $(READY) ## deploy to Fivetran; needs FIVETRAN_API_KEY, DESTINATION and CONNECTION
	@$(BIN)/python -m tools.deploy "$$LOCAL"

test: $(READY) ## run the tests
	$(BIN)/python -m pytest

thorough: $(READY) ## run the tests of random worlds with many more examples; SEED=1 repeats them
	$(BIN)/python -m pytest --hypothesis-profile=thorough --timeout=0 $(SEED:%=--hypothesis-seed=%) \
		tests/test_random_worlds.py tests/test_random_modes.py tests/test_fuzz.py

lint: $(READY) ## check the style
	$(BIN)/black --check .
	$(BIN)/flake8

bench: $(READY) ## measure the cost of syncs; QUICK=1 takes a minute instead of ten
	@$(BIN)/python -m tools.benchmark $(if $(QUICK),--quick)

clean: ## remove .venv, build and caches; your configurations and warehouses stay
	rm -rf .venv build .pytest_cache .hypothesis
	rm -rf __pycache__ mock_server/__pycache__ tests/__pycache__ tools/__pycache__

has-configuration: $(READY)
	@$(BIN)/python -m tools.configuration "$$LOCAL"

$(READY): $(BIN)/python requirements.txt requirements-dev.txt
	@echo "Installing packages into .venv; this takes a minute ..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements-dev.txt
	@touch $@

$(BIN)/python:
	@case "$$($(PYTHON) --version 2>&1)" in "Python 3."[1-9][0-9]*) ;; *) echo \
		"$(PYTHON) was not found, or is older than Python 3.10. Install Python 3.10 or later," \
		"or name one with make PYTHON=..." >&2; exit 1;; esac
	@$(PYTHON) -m venv --clear .venv
