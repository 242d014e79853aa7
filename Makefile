# Each target sets up .venv if necessary. PYTHON selects the Python for it. If PYTHON is not
# given, an existing .venv keeps its Python.
PYTHON ?= $(or $(shell cat $(READY) 2>/dev/null),python3)
# The Python version with which Fivetran runs the connector. The workflow tests it.
FIVETRAN_PYTHON = 3.13
# The folder of a local sync, with its configuration.json, warehouse and state. Git ignores it.
LOCAL ?= local
SDK = fivetran-connector-sdk==3.0.0
LINTERS = black==26.10.1 flake8==7.4.1 flake8-bugbear==26.10.27 \
	flake8-cognitive-complexity==0.1.0
BIN = .venv/bin
READY = .venv/ready
FIVETRAN = $(BIN)/fivetran
# The folder that is packaged and deployed. It contains only the connector.
PACKAGE = build/connector
# If PYTHON is given, a .venv with another Python is replaced.
ifneq ($(origin PYTHON),file)
ifneq ($(PYTHON),$(shell cat $(READY) 2>/dev/null))
ANOTHER_PYTHON = another-python
endif
endif

# Runs a command with a lock, so that only one make at a time sets up .venv. The operating system
# releases the lock even if the process is killed.
define LOCKED
import fcntl, subprocess, sys
try:
    lock = open(".make.lock", "w")
except OSError as error:
    sys.exit(f"This folder cannot be written to: {error.strerror}.")
try:
    fcntl.flock(lock, fcntl.LOCK_EX)
    sys.exit(subprocess.call(sys.argv[1:]))
except KeyboardInterrupt:
    sys.exit("Stopped. The next make completes the setup.")
endef

# A dollar sign in one of these values is part of the value, not a reference to a variable.
$(foreach name,CONNECTION DESTINATION LOCAL QUERY WAREHOUSE,\
	$(eval override $(name) := $$(value $(name))))
# The SDK searches PATH for the commands that it runs.
export PATH := $(PATH):$(CURDIR)/$(BIN)
export CONNECTION DESTINATION LOCAL LOCKED QUERY QUICK WAREHOUSE

.PHONY: demo test thorough lint bench check sync sql package deploy clean
.PHONY: ready set-up has-configuration another-python

demo: ready
	@$(BIN)/python -m mock_server.demo

test: ready
	$(BIN)/python -m pytest

# The property tests with many more examples than in make test.
thorough: ready
	$(BIN)/python -m pytest --hypothesis-profile=thorough --timeout=0 \
		tests/test_random_worlds.py tests/test_random_modes.py \
		tests/test_fuzz.py

lint: ready
	$(BIN)/black --check .
	$(BIN)/flake8

bench: ready
	@$(BIN)/python benchmark.py

check: has-configuration
	@$(FIVETRAN) configuration "$$LOCAL" --test

sync: has-configuration
	@$(FIVETRAN) debug "$$LOCAL" --configuration configuration.json

sql: ready
	@$(BIN)/python -m mock_server.sql -- "$${WAREHOUSE:-$$LOCAL/files/warehouse.db}" "$$QUERY"

package: ready
	@mkdir -p $(PACKAGE) && cp connector.py $(PACKAGE)
	$(FIVETRAN) package $(PACKAGE) --yes

deploy: has-configuration
	@test -n "$$DESTINATION" || { echo "DESTINATION is missing. Set it to the name of a" \
		"destination, as Fivetran shows it." >&2; exit 1; }
	@printf %s "$$CONNECTION" | grep -Eqx '[a-z_][a-z0-9_]*' || { echo "CONNECTION must be the" \
		"name of a new or existing connection: lowercase letters, digits and underscores, not" \
		"beginning with a digit." >&2; exit 1; }
	@test -n "$$FIVETRAN_API_KEY" || { echo "FIVETRAN_API_KEY is missing. Set it in the" \
		"environment to the Base64 text of a Fivetran API key." >&2; exit 1; }
	@mkdir -p $(PACKAGE) && cp connector.py $(PACKAGE)
	@# The SDK resolves a relative path from the deployed folder.
	$(FIVETRAN) deploy $(PACKAGE) --destination "$$DESTINATION" --connection "$$CONNECTION" \
		--configuration "$$(cd "$$LOCAL" && pwd)/configuration.json" \
		--python-version $(FIVETRAN_PYTHON)

# Keeps your configurations and warehouses.
clean:
	rm -rf .venv build crash-reports .make.lock .pytest_cache .hypothesis
	rm -rf __pycache__ mock_server/__pycache__ tests/__pycache__

has-configuration: ready
	@test -f "$$LOCAL/configuration.json" || { echo "There is no file" \
		"$$LOCAL/configuration.json. Copy configuration.json there and put the key into the" \
		"copy, or name another folder with LOCAL=..." >&2; exit 1; }
	@# The status is 1 only if the folder is inside a repository that does not ignore it.
	@git check-ignore -q "$$LOCAL/configuration.json" 2>/dev/null; test $$? -ne 1 \
	|| echo "Warning: git does not ignore $$LOCAL. Use a folder whose name begins with local." >&2
	@$(BIN)/python -m json.tool "$$LOCAL/configuration.json" /dev/null || { echo \
		"$$LOCAL/configuration.json cannot be read as JSON; the line above says why. Save it as" \
		"UTF-8 without a byte order mark." >&2; exit 1; }
	@cmp -s connector.py "$$LOCAL/connector.py" || cp connector.py "$$LOCAL"

# Setting up takes a lock and two Pythons, so it is only asked for if something is missing.
ready:
	@MAKEFLAGS= $(MAKE) -qs PYTHON="$(PYTHON)" $(READY) 2>/dev/null \
	|| MAKEFLAGS= $(MAKE) -s PYTHON="$(PYTHON)" set-up

set-up:
	@command -v "$(PYTHON)" >/dev/null || { echo "$(PYTHON) was not found. Install Python 3.10" \
		"or later, or name one with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	|| { echo "$(PYTHON) is older than Python 3.10; use make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c "$$LOCKED" $(MAKE) -s PYTHON="$(PYTHON)" $(READY)

# The make that runs this recipe holds the lock, so its check for another Python is up to date.
$(READY): requirements.txt Makefile $(ANOTHER_PYTHON)
	@echo "Setting up .venv with $(PYTHON); this takes a minute ..."
	@# A complete .venv of the same Python may contain packages of yours, so it is kept.
	@test "$$($(BIN)/python -c 'import pip, sys; print(sys.version)' 2>/dev/null)" = \
		"$$($(PYTHON) -c 'import sys; print(sys.version)')" || $(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check \
		$(SDK) $(LINTERS) -r requirements.txt
	@echo "$(PYTHON)" > $@
