# Everything a newcomer needs: `make demo`, `make test`. The environment is made on the first call.
EXTRA ?= cpu
# The release of torch, and with it of torchrec and fbgemm-gpu: one that constraints/ names.
TORCH ?= 2.13
VENV := .venv
# What the environment was made for: it is made anew for another build or release.
SYNCED := $(VENV)/synced-$(EXTRA)-$(TORCH)
# A directory with wheels of your own (say, a CPU build of torch), as pip knows it, serves uv too. `uv sync` would pass
# over a wheel that is not there for every Python version we support.
ifneq ($(strip $(PIP_FIND_LINKS)),)
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif
UV := $(or $(shell command -v uv),.tools/bin/uv)

.PHONY: help demo test test-slurm bench lint clean
help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

demo: data/demo/schema.yaml ## train CETNet and its components alone on generated clicks; print the NE-gain table
	$(VENV)/bin/cetnet study benchmarks/studies/demo.yaml --jobs 2

test: $(SYNCED) ## run the tests
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest --numprocesses logical --maxprocesses 4 --dist loadfile

test-slurm: $(SYNCED) ## run jobs on a Slurm cluster of two nodes on this machine (Debian, root)
	tests/slurm/local-cluster up
	@trap 'tests/slurm/local-cluster down' EXIT; trap 'exit 130' INT TERM; \
	SLURM_CONF=/var/lib/cetnet-slurm/slurm.conf $(VENV)/bin/pytest -m slurm tests/slurm -v

bench: $(SYNCED) ## measure training speed beside other trainers and the machine's limits (25 minutes on 2 idle cores)
	$(VENV)/bin/python -m cetnet.benchmarks.speed
	$(VENV)/bin/python -m cetnet.benchmarks.growth

lint: $(SYNCED) ## check style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean: ## remove environments, the data and runs of the demo and benchmarks, and caches
	rm -rf $(VENV) .tools .peers data/demo data/throughput data/reader_rate runs/demo runs/throughput runs/growth runs/smoke runs/breakdown runs/network runs/chaos runs/checkpoint_cost .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist src/*.egg-info

data/demo/schema.yaml: | $(SYNCED)
	$(VENV)/bin/cetnet prepare synthetic --out data/demo --rows 400000

$(SYNCED): pyproject.toml constraints/torch-$(TORCH).txt | $(UV)
	@rm -f $(VENV)/synced-*
	$(UV) venv --quiet --allow-existing $(VENV)
	$(UV) pip install --quiet --python $(VENV) --constraint constraints/torch-$(TORCH).txt \
		--editable '.[$(EXTRA)]' --group dev
	@touch $@

.tools/bin/uv:
	@python3 -m pip --version >/dev/null 2>&1 || { echo "make: needs uv, or pip for Python 3 to fetch it: install python3-pip"; exit 2; }
	python3 -m pip install --quiet --disable-pip-version-check --target .tools uv
