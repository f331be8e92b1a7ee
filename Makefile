# Every target makes what it needs, in a fresh clone: .venv here, and builds in a cache outside the tree.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/connlib
export CARGO_TARGET_DIR ?= $(CACHE)/target
# One profile for the extension and for the Rust tests, so that nothing is compiled twice.
PROFILE ?= dev
EXTENSION_SOURCES := $(shell find rust patches -type f -not -path '*/tests/*') Cargo.toml Cargo.lock pyproject.toml

.DEFAULT_GOAL := help
.PHONY: help demo test test-portable test-all soak lint mutants format bench bench-datapath reliability gigabyte audit docs rebase-patches venv extension lock wheel clean

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

## make demo            build connlib and show it: a gateway and a client, without root and without a network
demo: extension
	@$(BIN)/connlib demo $(ARGS)

## make test            all checks: rustfmt, clippy, cargo test, ruff, mypy, stubtest, pytest with real peers
test: extension
	@$(BIN)/python tools/check.py --profile $(PROFILE)

## make test-portable   the Python tests once more, with TUN devices without offloads, and event loops that move the packets
test-portable: extension
	@$(BIN)/python -m pytest --offload off $(ARGS)

## make test-all        the Python tests on every CPython >= 3.10 of this machine, with one wheel
test-all: extension
	@$(BIN)/python tools/test_all.py --profile $(PROFILE) $(ARGS)

## make soak            the tests that take an hour or two: a hundred bad lines, and 100,000 runs of the state machine
soak: extension
	@$(BIN)/python -m pytest -o faulthandler_timeout=0 -m soak $(ARGS)
	@CONNLIB_SOAK_EXAMPLES=100000 $(BIN)/python -m pytest -o faulthandler_timeout=0 tests/lab/test_state_machine.py $(ARGS)

## make lint            the checks that run nothing: rustfmt, clippy, ruff, mypy, stubtest
lint: extension
	@$(BIN)/python tools/check.py --profile $(PROFILE) --lint

## make mutants         plant bugs in a copy of the engine, and see that the specification's tests find them
mutants: extension
	@$(BIN)/python tools/mutants.py $(ARGS)

## make format          rewrite the sources as rustfmt and ruff want them
format: venv
	cargo fmt --all
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format --quiet

## make bench           measure against ring and pristine boringtun, and write docs/benchmarks.md
bench: venv
	@$(BIN)/python benches/run.py $(ARGS)

## make bench-datapath  measure TUN to TUN beside other implementations, and write docs/benchmarks.md (as root, with iperf3)
bench-datapath: venv
	@PYTHONPATH=benches:tests $(BIN)/python -m datapath $(ARGS)

## make reliability     cause the faults and attacks in network namespaces, and write docs/reliability.md (as root)
reliability: venv
	@PYTHONPATH=benches:tests $(BIN)/python -m reliability $(ARGS)

## make gigabyte        a gigabyte with a checksum through each kind of tunnel, and write docs/datapath.md (as root)
gigabyte: venv
	@PYTHONPATH=benches:tests $(BIN)/python -m gigabyte $(ARGS)

## make audit           licences and advisories: needs cargo-deny and pip-audit
audit: venv
	cargo deny check
	$(BIN)/python -m pip_audit -r requirements.lock --disable-pip

## make docs            write the cross-check's table and diagrams in docs/ anew
docs: extension
	@$(BIN)/connlib crosscheck --lines 0 --markdown docs/engine.md >/dev/null
	@$(BIN)/connlib crosscheck --lines 0 --draw docs/pictures 2 24 38 >/dev/null

## make rebase-patches VERSION=x.y.z   try the patch series on another release of boringtun
rebase-patches:
	@test -n "$(VERSION)" || { echo "usage: make rebase-patches VERSION=x.y.z" >&2; exit 2; }
	@cargo run --quiet --locked -p connlib-patched --bin rebase-patches -- try $(VERSION)

## make wheel           an optimised wheel for CPython >= 3.10, in dist/
wheel: venv
	$(BIN)/maturin build --release --locked --out dist

## make lock            write requirements.lock anew from pyproject.toml
lock: venv
	@$(BIN)/python tools/lock.py

venv: $(VENV)/.installed
extension: $(VENV)/.extension

$(VENV)/.installed: requirements.lock
	@$(PYTHON) tools/make_venv.py $(VENV)
	@touch $@

$(VENV)/.extension: $(VENV)/.installed $(EXTENSION_SOURCES)
	@command -v cargo >/dev/null || { echo "connlib is built with Rust: install cargo 1.88 or newer" >&2; exit 1; }
	@echo "building the extension in $(CARGO_TARGET_DIR)"
	@PIP_QUIET=1 PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/maturin develop --quiet --locked --profile $(PROFILE)
	@touch $@

## make clean           remove what was made in the tree (the cache outside it stays)
clean:
	rm -rf $(VENV) .venvs dist .mypy_cache .ruff_cache .pytest_cache .hypothesis python/connlib/_native*.so
