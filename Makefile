# make recipe name=lora-ner [force=1] [resume=1]   train, evaluate and save what recipes/lora-ner.yaml says
# make recipes                                   the same for all that need no hub and no GPU, and docs/recipes.md of them
# make bench suite=quick [jobs=2]                run what the suite has no result of, and write its tables and figures
# make test | test-all | test-night | check       the tests; all of them; those of faults in a night's counts; lint, types and tests
# make audit                                     whether a pinned dependency has a known vulnerability; asks the network
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: recipe recipes bench test test-all test-night check audit schema

recipe: $(READY)
	@test -n "$(name)" || { echo "make recipe needs a name, e.g. make recipe name=lora-ner; there are:"; ls recipes | sed -n 's/\.yaml$$//p'; exit 2; }
	@$(BIN)/peftlab run recipes/$(name).yaml $(if $(force),--force) $(if $(resume),--resume)

# What has its result is not run again.
recipes: $(READY)
	@for recipe in $$(grep -lE '^model: .*(all-MiniLM-L6-v2|SmolLM2-135M-Instruct|flan-t5-small-titles)' recipes/*.yaml); do \
		$(BIN)/peftlab run $$recipe --output benchmarks/recipes --score-base || exit; done
	@$(BIN)/peftlab overview recipes/*.yaml --results benchmarks/recipes > docs/recipes.md

bench: $(READY)
	@test -n "$(suite)" || { echo "make bench needs a suite, e.g. make bench suite=quick; there are:"; ls -d benchmarks/*/ | cut -d/ -f2; exit 2; }
	@$(BIN)/peftlab bench benchmarks/$(suite) --jobs $(or $(jobs),2)
	@$(BIN)/peftlab table benchmarks/$(suite)

# The tests of two cores: a process each, one thread each.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadgroup -m "not slow"

test-all: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadgroup

# The counts of a night: thousands of kills, damages and fuzzed recipes.
test-night: $(READY)
	PEFTLAB_FAULTS=all OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 tests/faults

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test

# One that the advisories do not know is a failure too: nothing was audited then.
audit:
	@test -x $(VENV)-audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)-audit && $(VENV)-audit/bin/pip install --quiet pip-audit; }
	$(VENV)-audit/bin/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

schema: $(READY)
	$(BIN)/peftlab schema > docs/recipe.schema.json

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "peftlab needs Python 3.11 or newer; name one with PYTHON=..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	@touch $@
