# `make demo` and `make test` need nothing but Python 3.11-3.13: both begin with `make install`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test check docs clean

install: .venv/.installed

# torch first and pinned: a looser request would pull another build.
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

demo: install
	bash scripts/demo.sh

test: install
	bash scripts/check.sh

check: test

docs: install
	$(BIN)/python -m sphinx -q -E -W --keep-going -d build/docs docs docs/site
	@echo "docs/site/index.html"

clean:
	rm -rf .venv build dist docs/site *.egg-info
