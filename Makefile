# The menu. `make` alone prints it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-gpu check format services lock clean \
    bench-train bench-ablation bench-robot bench-outage bench-scale bench-networks bench-simulator bench-console \
    bench-looks-real bench-gate bench-telemetry bench-archive bench-store bench-release bench-flood \
    chaos-release chaos-telemetry

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
BIN := .venv/bin

# uv installs, being ten times quicker than pip; it is told what pip on this machine is configured with.
pip_setting = $(or $($(1)),$(shell $(PYTHON) -m pip config get global.$(2) 2>/dev/null | tr '\n' ' '))
empty :=
comma := ,
space := $(empty) $(empty)
UV = UV_FIND_LINKS="$(subst $(space),$(comma),$(strip $(call pip_setting,PIP_FIND_LINKS,find-links)))" \
     $(if $(call pip_setting,PIP_INDEX_URL,index-url),UV_DEFAULT_INDEX="$(strip $(call pip_setting,PIP_INDEX_URL,index-url))") \
     $(BIN)/uv

help:  ## this menu
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

setup: .venv/.ready  ## .venv with everything pinned in constraints.txt

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "jetloop needs Python 3.11 or newer, this is $$($(PYTHON) -V); name another: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "no venv module: on Debian and Ubuntu, apt-get install python3-venv"; exit 1; }
	@echo "setting up .venv (about 2 GB, a few minutes the first time)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt uv
	@$(UV) pip install -q --python $(BIN)/python -c constraints.txt -e '.[platform]' --group dev
	@touch $@

demo: setup  ## the whole loop on this machine; DATA=dataset.zip WEIGHTS=weights.pth KEEP=1 are taken
	@$(BIN)/jetloop demo $(if $(DATA),--data "$(DATA)") $(if $(WEIGHTS),--weights "$(WEIGHTS)") $(if $(KEEP),--keep)

# Two processes for what only computes or talks; what measures time runs alone afterwards.
test: check  ## all checks and tests (a test whose server is missing says so; `make services` adds the servers)
	@$(BIN)/pytest -q -n 2 --dist loadfile -m "not alone"
	@$(BIN)/pytest -q -m alone

test-gpu: setup  ## what needs a GPU and TensorRT, where there is one; docs/jetson.md says how on a Jetson
	@$(BIN)/pytest -q -rs -s tests/gpu

check: setup  ## style, types, Python versions, direction of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/vermin -q --no-tips --violations -t=3.8- training serving/contracts serving/settings.py serving/errors.py
	@$(BIN)/vermin -q --no-tips --violations -t=3.6- serving/preprocess.py serving/engine/worker.py serving/engine/*_backend.py serving/build_tensorrt.py
	@$(BIN)/lint-imports

format: setup  ## put the code into its form
	@$(BIN)/ruff check --fix -q . ; $(BIN)/ruff format -q .

services: ## Debian packages of the servers that tests talk to (asks for root)
	@command -v apt-get >/dev/null || { echo "this is no Debian or Ubuntu: install mosquitto, chromium and chromedriver yourself"; exit 1; }
	@SUDO=$$([ $$(id -u) = 0 ] || echo sudo); \
	    $$SUDO apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$SUDO apt-get install -qq -y --no-install-recommends \
	    mosquitto postgresql prometheus prometheus-alertmanager activemq libmqtt-client-java libhawtdispatch-java \
	    chromium chromium-driver gstreamer1.0-tools gstreamer1.0-plugins-base gstreamer1.0-plugins-good systemd >/dev/null

lock: setup  ## constraints.txt anew from pyproject.toml, at the newest versions
	@$(UV) pip compile -q --upgrade --python-version 3.11 --no-annotate --no-header --extra platform --group dev pyproject.toml \
	    | sed -E 's/^(torch==[0-9.]+)\+.*/\1/' > build/constraints.txt
	@echo "uv==$$($(BIN)/uv --version | cut -d' ' -f2)" >> build/constraints.txt
	@LC_ALL=C sort build/constraints.txt > constraints.txt && git --no-pager diff --stat constraints.txt

# Benchmarks: each prints its table and writes build/bench/<name>.json; best on a machine with nothing else to do.
bench-train: setup  ## the notebook's recipe and ours on DATA=folder of sets, from WEIGHTS=weights.pth: 80 minutes
	@$(BIN)/python -m tests.bench.train --data "$(DATA)" --weights "$(WEIGHTS)"

bench-ablation: setup  ## what each part of the recipe gives on sources not seen; DATA= and WEIGHTS= as above: four hours
	@$(BIN)/python -m tests.bench.ablation --data "$(DATA)" --weights "$(WEIGHTS)"

bench-robot: setup  ## the robot's loop against one bare inference and the notebook's loop, and 100 swaps while driving
	@$(BIN)/python -m tests.bench.robot --swaps 100

bench-outage: setup  ## 100,000 events behind a broker that is down, and the robot's decisions while they drain
	@$(BIN)/python -m tests.bench.outage

bench-scale: setup  ## validate, split and pack of 1,000 to 100,000 images: time, memory, and dvc repro with nothing new
	@$(BIN)/python -m tests.bench.scale

bench-networks: setup  ## size and speed of the networks, fp32 and int8
	@$(BIN)/python -m tests.bench.networks

bench-simulator: setup  ## frames a second of the simulated camera, and the time of a 50-room suite
	@$(BIN)/python -m tests.bench.simulator

bench-looks-real: setup  ## do simulated images teach a network about real ones; DATA= and WEIGHTS= as above: minutes
	@$(BIN)/python -m tests.bench.looks_real --data "$(DATA)" --weights "$(WEIGHTS)"

bench-gate: setup  ## does the driving gate tell good models from bad, and steadily; DATA= and WEIGHTS=: about 15 minutes
	@$(BIN)/python -m tests.bench.gate --data "$(DATA)" --weights "$(WEIGHTS)"

bench-archive: setup  ## 1,000,000 events into the Parquet archive, and a question to it
	@$(BIN)/python -m tests.bench.archive --events $(or $(EVENTS),1000000)

bench-store: setup  ## the store against a bare insert, on SQLite and PostgreSQL
	@$(BIN)/python -m tests.bench.store

bench-release: setup  ## alias to one robot's first decision, to the last of 100, a poll's cost; a few minutes
	@$(BIN)/python -m tests.bench.release

chaos-release: setup  ## 2,000 random corruptions of the signed repository; 200 kills of who publishes and pulls, and of the service
	@$(BIN)/python -m tests.bench.release_chaos
	@JETLOOP_KILLS=200 $(BIN)/pytest -q tests/test_release_service_killed.py -k random -s

bench-telemetry: setup  ## robots to store against the broker alone: events a second, latency, memory (1,000,000 events: EVENTS=)
	@$(BIN)/python -m tests.bench.telemetry --events $(or $(EVENTS),200000)

bench-flood: setup  ## one robot floods: how long the events of nine others take to the store, and that nothing is lost
	@$(BIN)/python -m tests.bench.flood

chaos-telemetry: setup  ## 200,000 events while broker, bridge, collector, Kafka and database are killed and stopped
	@$(BIN)/python -m tests.bench.telemetry_chaos --events $(or $(EVENTS),200000)

bench-console: setup  ## the console with 1,000 robots in Chromium: first view, update, CPU; pictures in build/screens
	@$(BIN)/python -m tests.bench.console

clean:  ## remove what the commands made, .venv excepted
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
