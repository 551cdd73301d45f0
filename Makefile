# Everything a newcomer or CI runs. Each target builds .venv when it is missing or setup.py has changed.
#   make quickstart    train the debug system on two CPU cores and write runs/quickstart/report.html
#   make test          the tests to run after every change; installs the developers' tools too
#   make test-slow     trainings, kills, meshes and plans: what CI runs besides, with lint and docs
#   make attacks       thousands of damaged files and wrong configs
#   make quickstart WORKDIR=runs/other FLAGS="--set=tokenizer.steps=100"
#   make test FLAGS="-k quantizers"

# The interpreter that .venv is made with; the first Python >= 3.11 with venv that is found unless given.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
    $$p -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
    && echo $$p && break; done)

CONFIG ?= nbp:size=debug,block=token
WORKDIR ?= runs/quickstart
FLAGS =

.PHONY: quickstart test test-slow attacks lint docs clean

quickstart: .venv/.core
	@.venv/bin/python launch/local.py --config=$(CONFIG) --workdir=$(WORKDIR) $(FLAGS)

PYTEST = .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=15

test: .venv/.dev
	$(PYTEST) -m 'not slow and not attack' $(FLAGS)

test-slow: .venv/.dev
	$(PYTEST) -m 'slow and not attack' $(FLAGS)

attacks: .venv/.dev
	.venv/bin/python -m pytest tests/attacks -n 2 $(FLAGS)

lint: .venv/.dev
	.venv/bin/ruff check .
	.venv/bin/lint-imports

docs: .venv/.dev
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet --site-dir=site
	@echo "docs: site/index.html"

clean:
	rm -rf .venv .cache site build *.egg-info .pytest_cache .ruff_cache .import_linter_cache

.venv/.created:
	@test -n "$(PYTHON)" || { echo "error: no Python >= 3.11 with venv was found; install one (Debian, Ubuntu: \
	apt install python3 python3-venv) or name it: make quickstart PYTHON=/path/to/python3" >&2; exit 2; }
	@echo "creating .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/.core: setup.py | .venv/.created
	@echo "installing videogen and what it needs into .venv (about 1 minute)"
	@.venv/bin/python -m pip install -qq --disable-pip-version-check -e .
	@touch $@

.venv/.dev: setup.py | .venv/.created
	@echo "installing videogen and the developers' tools into .venv (about 2 minutes)"
	@.venv/bin/python -m pip install -qq --disable-pip-version-check -e '.[dev]'
	@touch .venv/.core $@
