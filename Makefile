# Each target prepares what it needs by itself: Debian packages, .venv, compiled modules (tools/bootstrap).
.PHONY: demo test check perf soak build clean
.DEFAULT_GOAL := check

PYTHON := .venv/bin/python
# Mounting needs root.
SUDO := $(shell [ "$$(id -u)" -eq 0 ] || command -v sudo)
# More arguments for pytest: make test ARGS="-k token"
ARGS :=

demo:
	@tools/bootstrap demo
	@$(SUDO) $(PYTHON) tools/demo.py

test:
	@tools/bootstrap test
	@$(PYTHON) tools/run_tests.py $(ARGS)

check:
	@tools/bootstrap build
	@$(PYTHON) tools/run_tests.py --part lint --part unit $(ARGS)

# S3BACKER_MINUTES: how long tests/crashes/test_long_run.py takes; S3BACKER_KILLS: how many writers are killed.
soak:
	@tools/bootstrap test
	@$(PYTHON) tools/run_tests.py --soak $(ARGS)

perf:
	@tools/bootstrap perf
	@$(PYTHON) -m pytest perf --timeout=0 $(ARGS); code=$$?; $(PYTHON) -m perf.charts && exit $$code

build:
	@tools/bootstrap build
	@$(PYTHON) tools/build_wheel.py

clean:
	rm -rf build dist .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks .cache *.egg-info
	rm -f s3backer/_*.c s3backer/*.so
	find s3backer tests tools perf -name __pycache__ -type d -prune -exec rm -rf {} +
