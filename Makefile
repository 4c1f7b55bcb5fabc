# Everything runs in .venv, which .ci/venv sets up. PYTHON=python3.12 makes it with another Python than python3.
.PHONY: demo test check bench train

demo:  # PORT=8080 chooses the port of the proxy, ONCE=1 ends after the conversation
	@.ci/venv demo guardrail demo $(if $(PORT),--port $(PORT)) $(if $(ONCE),--once)

test: check
	@.ci/venv test pytest

check:
	@.ci/venv test ruff check
	@.ci/venv test ruff format --check
	@.ci/venv test mypy

bench:
	@.ci/venv test guardrail bench

train:
	@.ci/venv test python -m training all star_trek_minilm
