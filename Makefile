# Each target sets up .venv by itself. PYTHON chooses the Python to make it with.
PYTHON ?= python3
SDK = fivetran-connector-sdk==3.0.0
LINTERS = black==26.10.1 flake8==7.4.1 flake8-bugbear==26.10.27
BIN = .venv/bin
READY = .venv/ready
FIVETRAN = $(BIN)/fivetran
# What goes to Fivetran: the connector and nothing else.
PACKAGE = build/connector
# The SDK looks for its own helpers on PATH.
export PATH := $(PATH):$(CURDIR)/$(BIN)

.PHONY: demo test lint bench package deploy clean

demo: $(READY)
	@$(BIN)/python -m mock_server.demo

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/black --check .
	$(BIN)/flake8

bench: $(READY)
	@$(BIN)/python benchmark.py

package: $(READY) $(PACKAGE)/connector.py
	$(FIVETRAN) package $(PACKAGE) --yes

deploy: $(READY) $(PACKAGE)/connector.py
	@missing=; for name in DESTINATION CONNECTION CONFIGURATION FIVETRAN_API_KEY; do \
		printenv $$name >/dev/null || missing="$$missing $$name"; done; \
	test -z "$$missing" || { echo "Missing:$$missing. Use: FIVETRAN_API_KEY=... make deploy" \
		"DESTINATION=... CONNECTION=... CONFIGURATION=FILE" >&2; exit 1; }
	$(FIVETRAN) deploy $(PACKAGE) --destination "$(DESTINATION)" \
		--connection "$(CONNECTION)" --configuration "$(CONFIGURATION)"

clean:
	rm -rf .venv build files crash-reports .pytest_cache .hypothesis

$(PACKAGE)/connector.py: connector.py
	@mkdir -p $(PACKAGE)
	cp connector.py $@

$(READY): requirements.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	|| { echo "$(PYTHON) is older than Python 3.10; use make PYTHON=..." >&2; exit 1; }
	@echo "Setting up .venv ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check \
		$(SDK) $(LINTERS) -r requirements.txt
	@touch $@
