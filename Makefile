# Each of these sets everything up by itself. PYTHON picks the interpreter (3.11 or later).
#   make sweep  a first sweep, with its report
#   make check  before each commit: style, types, and the fast tests of every room, within a minute on two cores
#   make test   all tests, within 10 minutes on two cores; ends with what this machine could not prove
#   make parity, aot  with transformers and lm-eval; with the TPU's compiler
PYTHON ?= python3
EXTRAS ?= test
VENV := .venv
RUN := $(VENV)/bin/
TOGETHER := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: sweep check test lint parity aot bench chaos fuzz install clean

sweep: install
	$(RUN)gptjax sweep experiments/chinchilla/quick.py --dir runs/quick

check: install lint
	$(RUN)python -m pytest $(TOGETHER) --fast

test: install lint
	$(RUN)python -m pytest $(TOGETHER)

lint: install
	$(RUN)ruff check .
	$(RUN)ruff format --check .
	$(RUN)mypy

aot: install
	$(RUN)python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[tpu]'
	$(RUN)python -m pytest tests/estimate/test_estimate.py tests/estimate/test_collectives.py tests/kernels/test_splash.py

parity: install
	$(RUN)python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[hf,eval]'
	$(RUN)python -m pytest tests/hf/test_parity.py tests/eval/test_harness.py

bench: install
	$(RUN)python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[hf]'
	$(RUN)python benchmarks/step.py --json benchmarks/step.json
	$(RUN)python benchmarks/sweep.py --full --json benchmarks/sweep.json
	$(RUN)python benchmarks/pack.py --json benchmarks/pack.json
	$(RUN)python benchmarks/growth.py --json benchmarks/growth.json
	$(RUN)python benchmarks/generate.py --json benchmarks/generate.json
	$(RUN)python benchmarks/interop.py --json benchmarks/interop.json
	$(RUN)python benchmarks/data.py --json benchmarks/data.json
	$(RUN)python benchmarks/fit.py --json benchmarks/fit.json
	-$(RUN)python -m pip install -qq --disable-pip-version-check -c constraints.txt chinchilla
	$(RUN)python benchmarks/peers_fit.py --json benchmarks/peers_fit.json

chaos: install
	$(RUN)python benchmarks/chaos.py --json benchmarks/chaos.json

fuzz: install
	$(RUN)python -m pip install -qq --disable-pip-version-check atheris
	$(RUN)python benchmarks/fuzz.py --json benchmarks/fuzz.json

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gptjax needs Python 3.11 or later; make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(RUN)python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf $(VENV) .cache build *.egg-info
