# Rengo's commands. `make` alone lists them. Works with GNU Make 3.81 and newer.

PYTHON ?= python3
VENV   ?= .venv
SEEDS  ?= 20000
ROUNDS ?= 500
RUNS   ?= 10
JOBS   ?= 4
ARCH   ?= arm64
ARGS   ?=

BIN       := $(VENV)/bin
INSTALL   := $(BIN)/python -m pip install -c constraints.txt
FOR_DEMO  := $(VENV)/.installed-all
FOR_DEV   := $(VENV)/.installed-dev
MANIFESTS := pyproject.toml constraints.txt
DATA      := mnist shakespeare watch
PACKAGES  := rengo algorithms broker storage fl_server fl_client iot runtime

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## list these commands
	@printf 'usage: make COMMAND\n\n'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-15s %s\n", $$1, $$2 }'
	@printf '\nPYTHON=python3.12 chooses the interpreter; ARGS="…" goes on to demo, test, soak, repeat, bench, bench-simulate, tables, size, storm and idle.\n'

.PHONY: setup
setup: $(FOR_DEV) ## install everything, tools for development included, into .venv

.PHONY: demo
demo: $(FOR_DEMO) ## train one model across real processes on this machine
	$(BIN)/rengo demo $(ARGS)

.PHONY: test
test: $(FOR_DEV) ## run the tests that every change needs
	$(BIN)/python -m pytest -n $(JOBS) --durations=10 $(ARGS)

.PHONY: soak
soak: $(FOR_DEV) ## run the long searches that a release needs too: all seeds, all kill points
	$(BIN)/python -m pytest -n $(JOBS) --durations=10 -m soak $(ARGS)

.PHONY: repeat
repeat: $(FOR_DEV) ## run the tests RUNS=10 times and list what failed at first
	$(BIN)/python -m tests.repeat $(RUNS) -n $(JOBS) $(ARGS)

.PHONY: check
check: $(FOR_DEV) ## check format, lint, types and who imports whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: bench
bench: $(FOR_DEV) ## measure rounds against the floor of the same bytes; JSON and a table
	$(BIN)/python -m benchmarks.rounds $(ARGS)

.PHONY: bench-simulate
bench-simulate: $(FOR_DEV) ## measure simulated rounds a second beside other simulators
	$(BIN)/python -m benchmarks.simulate $(ARGS)

.PHONY: tables
tables: $(FOR_DEV) ## run what published tables compare, about an hour; writes docs/results.md
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.tables $(ARGS)

.PHONY: size
size: $(FOR_DEV) ## take a model of 1 GiB through everything: memory, bytes, rates
	$(BIN)/python -m benchmarks.size $(ARGS)

.PHONY: dedupe
dedupe: $(FOR_DEV) ## measure what a part of a model that did not change costs
	$(BIN)/python -m benchmarks.dedupe $(ARGS)

.PHONY: history
history: $(FOR_DEV) ## measure what runs that have ended cost, from ten of them to ten thousand
	$(BIN)/python -m benchmarks.history $(ARGS)

.PHONY: idle
idle: $(FOR_DEV) ## measure an agent that waits: memory, processor, start, a no-op round
	$(BIN)/python -m benchmarks.idle $(ARGS)

.PHONY: storm
storm: $(FOR_DEV) ## let 2,000 devices connect to mosquitto at once, and 500 to NATS
	$(BIN)/python -m benchmarks.storm $(ARGS)

.PHONY: bench-tree
bench-tree: $(FOR_DEV) ## measure a tree of 4 domains with 25 devices each against the flat 100
	$(BIN)/python -m benchmarks.tree $(ARGS)

.PHONY: constrained
constrained: $(FOR_DEV) ## take part in a run within 96 MiB on a slow, lossy link (root, cgroup v1)
	$(BIN)/python -m benchmarks.constrained $(ARGS)

.PHONY: emulated
emulated: $(FOR_DEV) ## take part in a run as ARCH=arm64 or armhf under qemu-user (root)
	$(BIN)/python -m tests.emulated --arch $(ARCH) $(ARGS)

.PHONY: endurance
endurance: $(FOR_DEV) ## let an agent do ROUNDS=500 rounds: what it holds must not grow
	$(BIN)/python -m benchmarks.endurance --rounds $(ROUNDS) $(ARGS)

.PHONY: clients
clients: $(FOR_DEV) ## measure what a hundred thousand virtual clients hold in memory
	$(BIN)/python -m benchmarks.simulate_memory $(ARGS)

.PHONY: world
world: $(FOR_DEV) ## search SEEDS=20000 simulated histories with faults
	$(BIN)/python -m tests.world --seeds $(SEEDS) $(ARGS)

.PHONY: clean
clean: ## remove .venv, caches and build output (rengo-output stays)
	rm -rf $(VENV) build dist *.egg-info
	rm -rf .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find $(PACKAGES) tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each set of packages: an install is redone when a manifest changed, not before.

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "Rengo needs Python 3.11 or newer, but $(PYTHON) is" \
	         "$$($(PYTHON) --version 2>&1 || true). Name another: make PYTHON=python3.12 …" >&2; \
	    exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(FOR_DEMO): $(MANIFESTS) | $(VENV)/.created
	@echo 'Installing Rengo into $(VENV). The first time this downloads a lot, most of it torch.'
	$(INSTALL) -e '.[all]'
	@touch $@

$(FOR_DEV): $(MANIFESTS) | $(VENV)/.created
	@echo 'Installing Rengo for development into $(VENV). The first time this downloads a lot.'
	$(INSTALL) -e '.[all,dev]'
	@# data sets that some tests read: a machine that cannot fetch one skips them, and says so
	@for name in $(DATA); do \
	    test -d .cache/rengo/$$name || XDG_CACHE_HOME=.cache $(BIN)/rengo data get $$name || { \
	        rm -rf .cache/rengo/$$name; \
	        echo "The tests that need the data set $$name are skipped." >&2; }; \
	done
	@touch $(FOR_DEMO) $@
