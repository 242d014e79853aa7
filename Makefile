# Each target sets up .venv if necessary. PYTHON selects the Python for it. If PYTHON is not
# given, an existing .venv keeps its Python.
PYTHON ?= $(or $(shell cat $(READY) 2>/dev/null),python3)
# The Python version with which Fivetran runs the connector. The workflow tests it.
FIVETRAN_PYTHON = 3.13
CONFIGURATION ?= configuration.local.json
WAREHOUSE ?= files/warehouse.db
SDK = fivetran-connector-sdk==3.0.0
LINTERS = black==26.10.1 flake8==7.4.1 flake8-bugbear==26.10.27
BIN = .venv/bin
READY = .venv/ready
FIVETRAN = $(BIN)/fivetran
# The folder that is packaged and deployed. It contains only the connector.
PACKAGE = build/connector
# Runs a command with a lock, so that only one make at a time sets up .venv. The operating system
# releases the lock even if the process is killed.
LOCKED = import fcntl, subprocess, sys; lock = open(".make.lock", "w"); \
	fcntl.flock(lock, fcntl.LOCK_EX); sys.exit(subprocess.call(sys.argv[1:]))
# The SDK resolves relative paths from the deployed folder, so it receives an absolute path.
ABSOLUTE = $$($(BIN)/python -c 'import os, sys; print(os.path.abspath(sys.argv[1]))' "$$CONFIGURATION")
# If PYTHON is given, a .venv with another Python is replaced.
ifneq ($(origin PYTHON),file)
ifneq ($(PYTHON),$(shell cat $(READY) 2>/dev/null))
ANOTHER_PYTHON = another-python
endif
endif

# The SDK searches PATH for the commands that it runs.
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
	@test -n "$$DESTINATION" || { echo "DESTINATION is missing. Set it to the name of a" \
		"destination, as Fivetran shows it." >&2; exit 1; }
	@printf %s "$$CONNECTION" | grep -Eqx '[a-z_][a-z0-9_]*' || { echo "CONNECTION must be the" \
		"name of a new or existing connection: lowercase letters, digits and underscores, not" \
		"beginning with a digit." >&2; exit 1; }
	@test -n "$$FIVETRAN_API_KEY" || { echo "FIVETRAN_API_KEY is missing. Set it in the" \
		"environment to the Base64 text of a Fivetran API key." >&2; exit 1; }
	@mkdir -p $(PACKAGE) && cp connector.py $(PACKAGE)
	$(FIVETRAN) deploy $(PACKAGE) --destination "$$DESTINATION" --connection "$$CONNECTION" \
		--configuration "$(ABSOLUTE)" --python-version $(FIVETRAN_PYTHON)

# Keeps files/, which contains the warehouse and the state of fivetran debug.
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

# The make that runs this recipe holds the lock, so its check for another Python is up to date.
$(READY): requirements.txt Makefile $(ANOTHER_PYTHON)
	@echo "Setting up .venv with $(PYTHON); this takes a minute ..."
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check \
		$(SDK) $(LINTERS) -r requirements.txt
	@echo "$(PYTHON)" > $@
