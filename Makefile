# One line each over `atelier`; what a person gives (SET, PIPELINE, …) travels as environment variables, unexpanded:
# no shell and no make function ever reads it.
SHELL := /bin/sh
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

export ATELIER_PIPELINE := $(value PIPELINE)
export ATELIER_PROFILE := $(value PROFILE)
export ATELIER_SET := $(value SET)
export ATELIER_ARTIFACTS := $(value ARTIFACTS)
export ATELIER_RUN := $(value RUN)
export ATELIER_STEP := $(value STEP)
export ATELIER_PORT := $(value PORT)
export ATELIER_BENCH := $(value BENCH)
export ATELIER_KILLS := $(value KILLS)
export ATELIER_TORCH_INDEX := $(value TORCH_INDEX)
export ATELIER_WHEELS := $(value WHEELS)
export ATELIER_HOST := $(value HOST)
export ATELIER_NAMESPACE := $(value NAMESPACE)
export ATELIER_EXPERIMENT := $(value EXPERIMENT)
export ATELIER_NAME := $(value NAME)
export ATELIER_WAIT := $(value WAIT)
export ATELIER_AGAIN := $(value AGAIN)
export ATELIER_IMAGE_DIGESTS := $(value IMAGE_DIGESTS)
export ATELIER_ALLOW_TAGS := $(value ALLOW_TAGS)
export ATELIER_NO_CLUSTER_CHECK := $(value NO_CLUSTER_CHECK)
export ATELIER_NODES := $(value NODES)
export ATELIER_GPUS_PER_NODE := $(value GPUS_PER_NODE)
export ATELIER_GPU := $(value GPU)
export ATELIER_PRICE := $(value PRICE)
export ATELIER_MFU := $(value MFU)
export ATELIER_TARGETS := $(value TARGETS)
export ATELIER_BUILDER := $(value BUILDER)
export ATELIER_BASE_IMAGE := $(value BASE_IMAGE)
export ATELIER_PIP_CONFIG := $(value PIP_CONFIG)
export ATELIER_VOLUMES := $(value VOLUMES)
export ATELIER_PUSH := $(value PUSH)
export ATELIER_CRON := $(value CRON)
export ATELIER_CATCHUP := $(value CATCHUP)
export ATELIER_CONCURRENCY := $(value CONCURRENCY)
export ATELIER_ALWAYS := $(value ALWAYS)
# A shell's own TZ is not meant: only one that was typed.
export ATELIER_TZ := $(if $(filter command,$(origin TZ)),$(value TZ))
unexport HOST NAMESPACE EXPERIMENT NAME WAIT AGAIN IMAGE_DIGESTS ALLOW_TAGS NO_CLUSTER_CHECK CRON CATCHUP CONCURRENCY ALWAYS
unexport NODES GPUS_PER_NODE GPU PRICE MFU TARGETS BUILDER BASE_IMAGE PIP_CONFIG VOLUMES PUSH
unexport PIPELINE PROFILE SET ARTIFACTS RUN STEP PORT BENCH KILLS TORCH_INDEX WHEELS

.PHONY: help setup run resume list status logs ui doctor compile plan images submit stop schedule schedules unschedule test slow images-test chaos bench check format clean

help: ## this text
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

run: $(STAMP) ## a whole pipeline here, now [PIPELINE=] [PROFILE=laptop] [SET="k=v …"] [ARTIFACTS=s3://…]
	@$(BIN)/atelier run

resume: $(STAMP) ## the newest run again, with its parameters
	@$(BIN)/atelier resume

list: $(STAMP) ## the pipelines and their parameters
	@$(BIN)/atelier list

status: $(STAMP) ## the runs, or one run's steps [RUN=]
	@$(BIN)/atelier status

logs: $(STAMP) ## a step's log [RUN=] [STEP=]
	@$(BIN)/atelier logs

ui: $(STAMP) ## MLflow's page [PORT=5000]
	@$(BIN)/atelier ui

doctor: $(STAMP) ## looks at everything that a run needs [ARTIFACTS=]
	@$(BIN)/atelier doctor

compile: $(STAMP) ## every pipeline to build/pipelines/*.yaml [PROFILE=paper]
	@$(BIN)/atelier compile

plan: $(STAMP) ## what a submit would do and cost [PIPELINE=] [PROFILE=paper] [NODES=] [GPUS_PER_NODE=] [GPU=h200] [PRICE=] [MFU=]
	@$(BIN)/atelier plan

images: $(STAMP) ## the steps' images [TARGETS="ops train"] [BUILDER=] [BASE_IMAGE=] [TORCH_INDEX=] [PUSH=1] [PROFILE=]
	@$(BIN)/atelier images

submit: $(STAMP) ## a run on Kubeflow [PIPELINE=] [PROFILE=paper|own.yaml] [SET=] [HOST=] [NAMESPACE=] [EXPERIMENT=] [WAIT=1] [AGAIN=1]
	@$(BIN)/atelier submit

stop: $(STAMP) ## ends a run on Kubeflow RUN= [HOST=]
	@$(BIN)/atelier stop

schedule: $(STAMP) ## a recurring run on Kubeflow PIPELINE= CRON="0 3 * * 1" [TZ=Europe/Berlin] [CATCHUP=1] [CONCURRENCY=1] [ALWAYS=1]
	@$(BIN)/atelier schedule

schedules: $(STAMP) ## the recurring runs on Kubeflow [HOST=] [NAMESPACE=]
	@$(BIN)/atelier schedules

unschedule: $(STAMP) ## removes a pipeline's recurring run PIPELINE=
	@$(BIN)/atelier unschedule

test: $(STAMP) ## the tests
	@$(BIN)/python -m pytest -q -n auto --dist loadfile -m "not slow and not cluster and not gpu and not images"

slow: $(STAMP) ## the minutes-long tests too: elastic resume, 20 kills
	@$(BIN)/python -m pytest -q -m slow

images-test: $(STAMP) ## builds ops and train by buildah and runs components in them (root; ten minutes)
	@$(BIN)/python -m pytest -q -m images tests/images

chaos: $(STAMP) ## a training killed 100 times, many times in a save [KILLS=100]
	@ATELIER_CHAOS_KILLS=$${ATELIER_KILLS:-100} $(BIN)/python -m pytest -q -s -m slow tests/training/test_chaos.py

bench: $(STAMP) ## the benchmarks, a JSON line each [BENCH="name …"]
	@$(BIN)/python -m benchmarks $$ATELIER_BENCH

check: $(STAMP) ## lint, format, types, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(STAMP) ## formats and mends what ruff can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

setup: $(STAMP) ## makes .venv [PYTHON=python3.11] [TORCH_INDEX=URL] [WHEELS=folder]

# torch first, alone: its CPU build comes from another index or a folder where one is given.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(f"Python 3.11 or newer is needed, this is {sys.version}" if sys.version_info < (3, 11) else 0)'
	@$(BIN)/pip install -q "setuptools>=77" wheel
	@set -- install -q; \
	 if [ -n "$$ATELIER_TORCH_INDEX" ]; then set -- "$$@" --index-url "$$ATELIER_TORCH_INDEX"; fi; \
	 if [ -n "$$ATELIER_WHEELS" ]; then set -- "$$@" --find-links "$$ATELIER_WHEELS"; fi; \
	 echo "torch …"; $(BIN)/pip "$$@" torch -c constraints.txt
	@set -- install -q; \
	 if [ -n "$$ATELIER_WHEELS" ]; then set -- "$$@" --find-links "$$ATELIER_WHEELS"; fi; \
	 echo "everything else …"; $(BIN)/pip "$$@" -e '.[laptop,dev]' -c constraints.txt
	@touch $@

clean: ## removes build/ and caches of tools; runs and artifacts stay
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
