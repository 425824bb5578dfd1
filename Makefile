PYTHON ?= python3
CONFIG ?= config/config.yaml
ARGS ?=
EXTRAS := train,optimizers,api,slurm,dev,docs

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

# A conda environment made from environment.yml has the package and its tools; then it is used as
# it is. Python's -I looks only at what is installed, not at the egg-info in this folder.
HAS_TOOLS := from importlib.metadata import version; \
	[version(name) for name in ("agentsafe", "snakemake", "trl", "pytest", "mkdocs")]
IN_CONDA := $(shell [ -n "$${CONDA_PREFIX:-}" ] && \
	"$$CONDA_PREFIX/bin/python" -I -c '$(HAS_TOOLS)' 2>/dev/null && echo yes)

ifeq ($(IN_CONDA),yes)
BIN := $(CONDA_PREFIX)/bin
else
BIN := $(CURDIR)/.venv/bin
INSTALLED := .venv/.installed
# The stamp holds the folder it was made in: a copied or moved environment runs another's code.
ifneq ($(shell [ -x .venv/bin/python ] && cat .venv/.installed 2>/dev/null),$(CURDIR))
.PHONY: $(INSTALLED)
endif
endif

# What a tool starts in its turn comes from the same environment.
IN_ENVIRONMENT = PATH="$(BIN):$$PATH" "$(BIN)"
SNAKEMAKE = $(IN_ENVIRONMENT)/snakemake --configfile "$(CONFIG)"
JOBS = PYTHONPATH=workflow/plugins $(SNAKEMAKE) --logger jobs

# A worker takes whole files, in the order of tests/conftest.py; ARGS="-n 0" needs none.
IN_PARALLEL = -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: help run test lint docs lock plan status dag accept retry prune preflight calibrate doctor serve to-label export report \
	clean

help: ## print this list
	@echo 'make TARGET [CONFIG=$(CONFIG)] [ARGS="..."] [PYTHON=$(PYTHON)]'
	@awk -F ':.*## ' '/^[a-z -]+:.*## / {printf "%-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(INSTALLED) ## run the workflow on CONFIG; ARGS go to Snakemake
	@$(SNAKEMAKE) --cores all --quiet reason $(ARGS)

test: $(INSTALLED) ## run the tests; ARGS go to pytest
	@$(IN_ENVIRONMENT)/python -m pytest $(IN_PARALLEL) --durations=20 $(ARGS)

lint: $(INSTALLED) ## check style and types: ruff, snakefmt, mypy, Snakemake's own linter
	@$(IN_ENVIRONMENT)/ruff check .
	@$(IN_ENVIRONMENT)/ruff format --check .
	@$(IN_ENVIRONMENT)/snakefmt --check Snakefile workflow
	@$(IN_ENVIRONMENT)/mypy
	@$(SNAKEMAKE) --lint

docs: $(INSTALLED) ## write the generated pages, build the site into site/, without the network
	@$(IN_ENVIRONMENT)/python -m docs.generate
	@NO_MKDOCS_2_WARNING=1 $(IN_ENVIRONMENT)/mkdocs build --strict

lock: ## refresh requirements.lock: the version of every dependency, from a fresh environment
	@$(PYTHON) -m venv --clear .lock
	@.lock/bin/python -m pip install -qq --disable-pip-version-check '.[$(EXTRAS)]'
	@.lock/bin/python -m pip freeze --all --exclude agentsafe --exclude pip | sed 's/+[a-z0-9.]*$$//' > requirements.lock
	@rm -rf .lock

plan: $(INSTALLED) ## say what a run of CONFIG would do now, why, and in how many hours
	@$(JOBS) --dry-run $(ARGS) | $(IN_ENVIRONMENT)/python -m agentsafe.runs.plan

status: $(INSTALLED) ## say how the run of CONFIG stands, also while it goes on: jobs, pace, errors
	@$(JOBS) --dry-run --forceall $(ARGS) | $(IN_ENVIRONMENT)/python -m agentsafe.runs.status

dag: $(INSTALLED) ## draw the rules of CONFIG as SVG, and where each checkpoint came from as a page
	@$(JOBS) --dry-run --forceall $(ARGS) | $(IN_ENVIRONMENT)/python -m agentsafe.runs.dag

accept: $(INSTALLED) ## after an upgrade, keep results as they are: only where nothing but code changed
	@drawn=$$($(JOBS) --dry-run $(ARGS) | $(IN_ENVIRONMENT)/python -m agentsafe.runs.plan --accept); \
		$(SNAKEMAKE) --touch --cores 1 --quiet all $(ARGS) $${drawn:+--omit-from $$drawn}

retry: $(INSTALLED) ## delete the tables of CONFIG with failed rows: the next run makes those rows again
	@$(IN_ENVIRONMENT)/python -m agentsafe.runs.retry "$(CONFIG)"

DRY =
OLD =
prune: $(INSTALLED) ## delete what killed jobs of CONFIG left; DRY=1 only lists, OLD=1 unnamed lineages, too
	@$(IN_ENVIRONMENT)/python -m agentsafe.runs.prune "$(CONFIG)" $(if $(DRY),--dry) $(if $(OLD),--old)

preflight: $(INSTALLED) ## ask every model of CONFIG, measure prompts, estimate tokens; then go or not
	@$(SNAKEMAKE) --quiet all --cores all preflight $(ARGS)

# Not from the environment: where RUN happens to be set, nothing starts.
MODEL =
RUN =
SBATCH =
serve: $(INSTALLED) ## print how to start a server for MODEL of CONFIG; RUN=1 starts it, SBATCH=1 on SLURM
	@$(IN_ENVIRONMENT)/python -m agentsafe.runs.serve "$(CONFIG)" $(MODEL) \
		$(if $(RUN),--run) $(if $(SBATCH),--sbatch) $(if $(ARGS),-- $(ARGS))

calibrate: $(INSTALLED) ## measure on this machine how fast models of CONFIG are (MODEL=name), for preflight
	@$(IN_ENVIRONMENT)/python -m agentsafe.runs.calibrate "$(CONFIG)" $(MODEL)

INT4 =
NETWORK =
doctor: $(INSTALLED) ## say what this machine can run, and try a small model on it; INT4=1, NETWORK=1 check those
	@$(IN_ENVIRONMENT)/python -m agentsafe.runs.doctor $(if $(NETWORK),--network) $(if $(INT4),--int4)

to-label: $(INSTALLED) ## write a sample of CONFIG's rollouts for people to label, as a page and a CSV
	@$(SNAKEMAKE) --quiet all --cores all export_rollouts $(ARGS)

export: $(INSTALLED) ## write LINEAGE of CONFIG's run into a folder TO that stands alone, FORMAT=merged or adapter
	@$(IN_ENVIRONMENT)/python -m agentsafe.runs.export "$(CONFIG)" "$(LINEAGE)" "$(FORMAT)" "$(TO)"

report: $(INSTALLED) ## write Snakemake's report of the last run to report.html
	@$(SNAKEMAKE) --report report.html $(ARGS)

clean: ## remove .venv, site, caches and report.html; results and resources stay
	@rm -rf .venv .lock build site *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis report.html
	@find agentsafe tests workflow benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "$(PYTHON) is missing or older than 3.11; name another: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) has no venv module: install it (Debian, Ubuntu: python3-venv)" >&2; exit 1; }
	@[ ! -L .venv ] || { echo ".venv is a link, and what it names would be emptied: remove it" >&2; \
		exit 1; }
	@echo "Installing agentsafe and its tools into .venv; this takes several minutes."
	@$(PYTHON) -m venv --clear .venv
	@.venv/bin/python -m pip install -qq --disable-pip-version-check \
		--constraint requirements.lock --editable '.[$(EXTRAS)]'
	@echo "$(CURDIR)" > $@
