## peftlab: parameter-efficient fine-tuning, compared fairly.
##
## Train
##   make recipe name=X        train, evaluate and save what recipes/X.yaml says; a finished run is not repeated
##        set="key=value ..."  override keys, e.g. set="quantization=nf4 method.rank=8"
##        device=cpu|cuda      stay on the CPU, or insist on a GPU; default: the GPU if there is one
##        processes=N          N processes on this machine, through accelerate launch
##        resume=1             resume from the newest checkpoint
##        force=1              run again even if the result exists
##   make recipes              all recipes that need neither the Hub nor a GPU, then docs/recipes.md
##
## Compare
##   make bench suite=quick    run what the suite has no result of, then write its tables and figures
##        jobs=N               runs at the same time; default: 2
##
## Develop
##   make install              the environment in .venv; every target that needs it does this first
##   make check                lint, types, import layers and make test
##   make test                 tests of every change: about 7 minutes on two cores
##   make test-all             the whole contract grid and the slow tests as well
##   make test-rest            what test-all runs in addition to test
##   make test-night           fault injection with the counts of a night, all memory estimates
##   make test-walk            every text architecture with the main methods, then docs/compatibility.md; resumes if stopped
##   make schema               docs/recipe.schema.json, the JSON schema of recipes for editors
##   make docs-reference       docs/reference.md, every key with its type, default and meaning
##   make audit                known vulnerabilities of the pinned dependencies; needs the network
##
## PYTHON=python3.12 names the interpreter for .venv. After installation `peftlab --help` lists all commands.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
.DEFAULT_GOAL := help
.PHONY: help install recipe recipes bench test test-rest test-all test-night test-walk check audit schema docs-reference

help:
	@sed -n 's/^## \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

install: $(READY)

# Variants of recipes that differ by one override: NAME:KEY=VALUE.
VARIANTS := $(foreach name,adalora-ner adapter-ner prefix-ner,$(name):quantization=int8 $(name):quantization=nf4)

# The overrides are validated first: accelerate's launcher would bury the line under a traceback.
recipe: $(READY)
	@fail() { echo "make recipe: $$1" >&2; exit 2; }; \
	gpu() { $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; }; \
	recipes=$$(ls recipes | sed -n 's/\.yaml$$//p' | tr '\n' ' '); \
	test -n "$(name)" || fail "name a recipe, e.g. make recipe name=lora-ner; there are: $$recipes"; \
	case "$(processes)" in ""|[1-9]|[1-9][0-9]) ;; *) fail "processes=$(processes): expected a number, 1 or more" ;; esac; \
	case "$(device)" in \
		"") ;; \
		cpu) export ACCELERATE_USE_CPU=true ;; \
		cuda) gpu || fail "device=cuda: torch finds no GPU" ;; \
		*) fail "device=$(device): expected cpu or cuda" ;; \
	esac; \
	set -f; set -- $(set); for override in "$$@"; do shift; set -- "$$@" --set "$$override"; done; \
	set -- recipes/$(name).yaml "$$@"; \
	if [ $(or $(processes),1) = 1 ]; then launch=$(BIN)/python; else \
		$(BIN)/peftlab validate "$$@" >/dev/null || exit 2; \
		if [ "$(device)" != cpu ] && gpu; then config=ddp; else config=cpu-2; fi; \
		launch="$(BIN)/accelerate launch --config_file recipes/accelerate/$$config.yaml --num_processes $(processes)"; \
	fi; \
	exec $$launch -m peftlab run "$$@" $(if $(force),--force) $(if $(resume),--resume)

# A recipe that has its result is not run again.
recipes: $(READY)
	@run() { $(BIN)/peftlab run "$$@" --output benchmarks/recipes --score-base || exit; }; \
	for recipe in $$(grep -lE '^model: .*(all-MiniLM-L6-v2|SmolLM2-135M-Instruct|flan-t5-small-titles)' recipes/*.yaml); do \
		run $$recipe; done; \
	for variant in $(VARIANTS); do run recipes/$${variant%%:*}.yaml --set $${variant#*:}; done
	@$(BIN)/peftlab overview recipes/*.yaml --results benchmarks/recipes \
		$(foreach variant,$(VARIANTS),--variant "$(subst :, ,$(variant))") > docs/recipes.md

bench: $(READY)
	@test -f "benchmarks/$(suite)/suite.yaml" || { echo "make bench: no suite '$(suite)', e.g. make bench suite=quick;" \
		"there are: $$(ls benchmarks/*/suite.yaml | cut -d/ -f2 | tr '\n' ' ')" >&2; exit 2; }
	@$(BIN)/peftlab bench benchmarks/$(suite) --jobs $(or $(jobs),2)
	@$(BIN)/peftlab table benchmarks/$(suite)

# One test process per core, one thread each. A file stays in one process: its fixtures are built once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test: $(READY)
	$(PYTEST) -m "not slow and not grid and not night"

test-rest: $(READY)
	$(PYTEST) -m "(slow or grid) and not night"

test-all: $(READY)
	$(PYTEST) -m "not night"

# Thousands of kills, damaged files and fuzzed recipes; all memory estimates.
test-night: $(READY)
	PEFTLAB_FAULTS=all OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 tests/faults
	$(PYTEST) -m night --ignore tests/faults

# One process, hours long. In parts: peftlab doctor --matrix --shard 1/2
test-walk: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/peftlab doctor --matrix

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test

schema: $(READY)
	$(BIN)/peftlab schema > docs/recipe.schema.json

docs-reference: $(READY)
	$(BIN)/peftlab reference > docs/reference.md

# A dependency that the advisories do not list fails too: it was not audited.
audit:
	@test -x $(VENV)-audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)-audit && $(VENV)-audit/bin/pip install --quiet pip-audit; }
	$(VENV)-audit/bin/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "peftlab needs Python 3.11 or newer; name one with PYTHON=..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	@touch $@
