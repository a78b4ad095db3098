# Docent. `make` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3.11
UV_VERSION := 0.13.8
# uv does not read pip's settings: hand it the folder of wheels that pip was given.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
# Unlike pip, uv leaves this to the first start, and where that may not write, to every one.
export UV_COMPILE_BYTECODE := 1
export DS_BUILD_OPS := 0
export PATH := $(CURDIR)/.venv/bin:$(PATH)
UV := .venv/bin/uv

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: .venv/installed .venv-model/installed ## both environments; does nothing when nothing changed

.venv/installed: requirements/core.txt
	@echo "core environment -> .venv"
	@[ -x .venv/bin/python ] || $$(command -v $(PYTHON) || command -v python3) -m venv .venv
	@[ -x $(UV) ] || .venv/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@$(UV) pip install --quiet --python .venv/bin/python -r requirements/core.txt
	@touch $@

.venv-model/installed: requirements/model.txt .venv/installed
	@echo "model environment (Axolotl, DeepSpeed, torch) -> .venv-model"
	@[ -x .venv-model/bin/python ] || $(UV) venv --quiet --python .venv/bin/python .venv-model
	@$(UV) pip install --quiet --python .venv-model/bin/python $(if $(TORCH_BACKEND),--torch-backend $(TORCH_BACKEND)) -r requirements/model.txt
	@touch $@

lock: .venv/installed ## resolve pyproject.toml and requirements/model.in again
	$(UV) pip compile --quiet --python-version 3.11 --no-emit-find-links --extra dev pyproject.toml -o requirements/core.txt
	sed -i.bak -E 's/^torch==([0-9.]+)$$/torch==\1+cpu/' requirements/model.txt  # prefer the build without CUDA, where there is one
	$(UV) pip compile --quiet --python-version 3.11 --no-emit-find-links requirements/model.in -o requirements/model.txt
	sed -i.bak -E 's/^torch==([0-9.]+)\+cpu/torch==\1/' requirements/model.txt && rm requirements/model.txt.bak

demo: setup ## set everything up and run the whole DAG on Docent's own manual
	@python -m stages run

params: setup ## compose conf/ into params.yaml
	@python -m stages params

run: setup ## run what changed: make run ARGS="split=markdown seed=1"
	@python -m stages run $(ARGS)

refresh: setup ## fetch the sources anew: make refresh ARGS="source=web source.url=https://…"
	@python -m stages refresh $(ARGS)

sweep: setup ## run the DAG once per point: make sweep ARGS="finetune.learning_rate=1e-3,3e-3"
	@python -m stages sweep -m $(ARGS)

docs: setup ## build the manual into data/site
	@python docs/keys.py && dvc repro site

chat: setup ## ask the bot in the terminal
	@python -m stages chat

mlflow: setup ## open the runs in MLflow's UI, on this machine only
	@echo "The runs: http://127.0.0.1:$(or $(PORT),5000)/#/experiments/1/runs (choose Model training at the top left)"
	@mlflow ui --backend-store-uri sqlite:///mlruns/mlflow.db --default-artifact-root mlruns/artifacts --host 127.0.0.1 --port $(or $(PORT),5000)

check: setup ## lint, formatting, types, floors
	@ruff check . && ruff format --check . && mypy && lint-imports --no-logo

test: setup check ## all checks and the tests, under ten minutes on two cores
	@python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

test-slow: setup check ## the long tests too: real trainings, many kills
	@python -m pytest

bench: setup ## one benchmark: make bench NAME=demo ARGS=--quick
	@python -m benchmarks.$(NAME) $(ARGS)

.PHONY: help setup lock demo params run refresh sweep docs chat mlflow check test test-slow bench
