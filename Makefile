# make demo, make test, make lint: each sets up .venv by itself.
PYTHON ?= python3
SDK = fivetran-connector-sdk==3.0.0
LINTERS = black==26.10.1 flake8==7.5.0 flake8-bugbear==26.10.27
READY = .venv/ready
BIN = .venv/bin

.PHONY: demo test lint clean

demo: $(READY)
	$(BIN)/python -m mock_server.demo

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/black --check .
	$(BIN)/flake8

clean:
	rm -rf .venv build files crash-reports .pytest_cache .hypothesis

$(READY): requirements.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	|| { echo "$(PYTHON) is older than Python 3.10; use make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --disable-pip-version-check $(SDK) $(LINTERS) -r requirements.txt
	@touch $@
