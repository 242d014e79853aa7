# Each target sets up .venv by itself. PYTHON chooses the Python to make it with; unless it is
# given, .venv keeps the one that it was made with.
PYTHON ?= $(or $(shell cat $(READY) 2>/dev/null),python3)
# The Python that Fivetran runs the connector with; the workflow tests it.
FIVETRAN_PYTHON = 3.13
CONFIGURATION ?= configuration.local.json
WAREHOUSE ?= files/warehouse.db
SDK = fivetran-connector-sdk==3.0.0
LINTERS = black==26.10.1 flake8==7.4.1 flake8-bugbear==26.10.27
BIN = .venv/bin
READY = .venv/ready
FIVETRAN = $(BIN)/fivetran
# What goes to Fivetran: the connector and nothing else.
PACKAGE = build/connector
# Runs a command while no other make of this folder does, and lets go even when it is killed.
LOCKED = import fcntl, subprocess, sys; lock = open(".make.lock", "w"); \
	fcntl.flock(lock, fcntl.LOCK_EX); sys.exit(subprocess.call(sys.argv[1:]))
# The SDK takes a relative path from the folder that is deployed, so it gets an absolute one.
ABSOLUTE = $$($(BIN)/python -c 'import os, sys; print(os.path.abspath(sys.argv[1]))' "$$CONFIGURATION")
# A Python that is asked for by name replaces a .venv that was made with another.
ifneq ($(origin PYTHON),file)
ifneq ($(PYTHON),$(shell cat $(READY) 2>/dev/null))
ANOTHER_PYTHON = another-python
endif
endif

# The SDK looks for its own helpers on PATH.
export PATH := $(PATH):$(CURDIR)/$(BIN)
export CONFIGURATION CONNECTION DESTINATION QUERY QUICK WAREHOUSE

.PHONY: demo test lint bench check sync sql package deploy clean ready has-configuration another-python

demo: ready
	@$(BIN)/python -m mock_server.demo

test: ready
	$(BIN)/python -m pytest

lint: ready
	$(BIN)/black --check .
	$(BIN)/flake8

bench: ready
	@$(BIN)/python benchmark.py

check: ready has-configuration
	@folder=$$(mktemp -d) && trap 'rm -r "$$folder"' EXIT && cp connector.py "$$folder" \
	&& ln -s "$(ABSOLUTE)" "$$folder/configuration.json" && $(FIVETRAN) configuration "$$folder" --test

sync: ready has-configuration
	@$(FIVETRAN) debug . --configuration "$(ABSOLUTE)"

sql: ready
	@$(BIN)/python -m mock_server.sql "$$WAREHOUSE" "$$QUERY"

package: ready
	@mkdir -p $(PACKAGE) && cp connector.py $(PACKAGE)
	$(FIVETRAN) package $(PACKAGE) --yes

deploy: ready has-configuration
	@test -n "$$DESTINATION" || { echo "DESTINATION is missing: the name of a destination, as" \
		"Fivetran shows it." >&2; exit 1; }
	@printf %s "$$CONNECTION" | grep -Eqx '[a-z_][a-z0-9_]*' || { echo "CONNECTION must be the" \
		"name of a new or existing connection: lowercase letters, digits and underscores, not" \
		"beginning with a digit." >&2; exit 1; }
	@test -n "$$FIVETRAN_API_KEY" || { echo "FIVETRAN_API_KEY is missing: the Base64 text of a" \
		"Fivetran API key, in the environment." >&2; exit 1; }
	@mkdir -p $(PACKAGE) && cp connector.py $(PACKAGE)
	$(FIVETRAN) deploy $(PACKAGE) --destination "$$DESTINATION" --connection "$$CONNECTION" \
		--configuration "$(ABSOLUTE)" --python-version $(FIVETRAN_PYTHON)

# What you synced stays: files/ holds the warehouse and the state of fivetran debug.
clean:
	rm -rf .venv build crash-reports .make.lock .pytest_cache .hypothesis

has-configuration:
	@test -f "$$CONFIGURATION" || { echo "There is no file $$CONFIGURATION. Copy" \
		"configuration.json to configuration.local.json and put the key into it, or name" \
		"another file with CONFIGURATION=..." >&2; exit 1; }

ready:
	@command -v "$(PYTHON)" >/dev/null || { echo "$(PYTHON) was not found. Install Python 3.10" \
		"or later, or name one with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	|| { echo "$(PYTHON) is older than Python 3.10; use make PYTHON=..." >&2; exit 1; }
	@MAKEFLAGS= $(PYTHON) -c '$(LOCKED)' $(MAKE) -s PYTHON="$(PYTHON)" $(READY)

# Whether it is another Python is asked with the lock held, by the make that makes this.
$(READY): requirements.txt Makefile $(ANOTHER_PYTHON)
	@echo "Setting up .venv with $(PYTHON); this takes a minute ..."
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check \
		$(SDK) $(LINTERS) -r requirements.txt
	@echo "$(PYTHON)" > $@
