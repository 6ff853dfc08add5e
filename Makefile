# make run: two pictures from the tiny checkpoint, or PROMPT="..." of its words. make test: the tests. Each sets up what it
# needs.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3.14 python3; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
# Of pytest: one more than there are cores, because tests wait for processes of their own.
WORKERS := $(shell echo $$(($$(nproc 2>/dev/null || echo 2) + 1)))

.PHONY: run serve play gallery deploy-tools test test-gpu test-versions test-clients test-play prove lint integration image-test \
	hub-files clean

run: .venv/run-installed
	@$(BIN)/python -m examples.quickstart $(if $(PROMPT),"$$PROMPT") $(if $(IMAGE),--image "$$IMAGE")

export PROMPT IMAGE

# A RunPod endpoint at home, until Ctrl-C. ARGS: its options, as ARGS='--port 8001'.
serve: .venv/run-installed
	@exec $(BIN)/python -m qwen_local $(ARGS)

# The page in the browser, on the endpoint at home. ARGS: `--port 7870`, or what `python -m qwen_play --help` lists.
play: .venv/run-installed .venv-play/installed
	@exec .venv-play/bin/python -m qwen_play $(ARGS)

test: .venv/test-installed
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# docs/gallery.md, drawn by RunPod's endpoint ENDPOINT, or by the one that `make serve` has started. ARGS: more options.
gallery: .venv/deploy-installed
	@$(BIN)/python -m qwen_deploy.gallery $(if $(ENDPOINT),--endpoint-id $(ENDPOINT)) $(ARGS)

# What only a card can show. Without one each test that needs it is skipped, and says so.
test-gpu: .venv/test-installed
	$(BIN)/python -m pytest tests/gpu

# What reaches into other libraries (docs/patches.md) on the oldest of their releases that the worker runs on, in an
# environment of its own. OLDEST_INDEX: another index to look for torch in, as https://download.pytorch.org/whl/cpu.
OLDEST_TESTS := tests/memory tests/model tests/speed tests/weights tests/lora/test_adapters.py tests/loading \
	tests/drawing tests/worker/test_control.py tests/worker/test_presets.py tests/worker/test_limited_guidance.py \
	tests/serving/test_progress.py::test_the_estimate_is_the_finished_picture_where_the_path_is_straight \
	tests/worker/test_handler.py::test_a_spoiled_card_asks_for_a_fresh_worker_once \
	tests/worker/test_picture_layers.py::test_without_a_prompt_the_model_describes_the_picture_itself \
	tests/worker/test_two_one.py::test_the_prefix_cache_is_given_up_before_the_picture_is_decoded \
	tests/worker/test_two_one.py::test_fast_draws_on_the_schedule_of_its_lora \
	tests/ranks/test_two_cards.py::test_twenty_jobs_of_all_kinds_are_equal_to_the_byte

test-versions: .venv-oldest/installed
	.venv-oldest/bin/python -m pytest -n $(WORKERS) --dist worksteal $(OLDEST_TESTS)

# Clients that the other tests do without: those of image APIs, of which litellm alone has 200 MB, and examples/client.ts,
# for which npm brings a node that runs TypeScript.
test-clients: .venv/clients-installed tests/support/ai_sdk/node_modules
	$(BIN)/python -m pytest tests/worker/test_clients.py tests/examples

# The playground page in a real browser, Debian's package chromium; screenshots in out/play.
test-play: .venv/play-test-installed .venv-play/installed tests/play/browser/node_modules
	$(BIN)/python -m pytest tests/play

# The long proofs, one after another, written to benchmarks/results/: about an hour (computed) on two idle cores. `make prove`
# again goes on after the proofs that are over, which out/prove names; `rm -r out/prove` begins with the first again.
PROOFS := $(addprefix out/prove/,costs handler throughput soak matching rounds photos quality single_files evaluate tests)
.NOTPARALLEL:

prove: $(PROOFS)
	@rm -r out/prove

out/prove/throughput: OPTIONS := --jobs 16 --steps 3
out/prove/quality: OPTIONS := --prompts 96
out/prove/%: .venv/test-installed | out/prove
	$(BIN)/python -m benchmarks $* $(OPTIONS)
	@touch $@

out/prove/evaluate: .venv/test-installed | out/prove
	$(BIN)/python -m qwen_tiny.evaluate >$@.json
	mv $@.json benchmarks/results/evaluate.json
	@touch $@

out/prove/tests: .venv/test-installed | out/prove
	$(BIN)/python -m pytest --prove
	@touch $@

out/prove:
	@mkdir -p $@

lint: .venv/test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/hadolint Dockerfile .runpod/Dockerfile

integration: .venv/run-installed
	$(BIN)/python test_qwen_integration.py

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed (diffusers 0.42 asks for it) and was not found; set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/run-installed: requirements.txt | .venv/bin/python
	@echo "Installing what the worker needs into .venv: about two minutes and 6 GB (torch with CUDA) the first time."
	@$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.txt
	@touch $@

# What deploy_qwen.py runs on: a few small packages, which a worker's environment has too.
deploy-tools: .venv/deploy-installed

.venv/deploy-installed: requirements-deploy.txt | .venv/bin/python
	@$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements-deploy.txt
	@touch $@
	@echo "Installed. Next: $(BIN)/python deploy_qwen.py --help"

.venv/test-installed: requirements.txt requirements-dev.txt | .venv/bin/python
	@echo "Installing what the tests need into .venv: about two minutes and 6 GB (torch with CUDA) the first time."
	@$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements-dev.txt
	@touch $@ .venv/run-installed

.venv/clients-installed: requirements-clients.txt | .venv/test-installed
	@$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements-clients.txt
	@touch $@

tests/support/ai_sdk/node_modules: tests/support/ai_sdk/package.json tests/support/ai_sdk/package-lock.json
	@npm ci --prefix tests/support/ai_sdk --no-audit --no-fund
	@touch $@

.venv/play-test-installed: requirements-play-test.txt | .venv/test-installed
	@$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements-play-test.txt
	@touch $@

.venv-play/installed: requirements-play.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed and was not found; set PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Installing the playground page into .venv-play: half a minute and 0.5 GB the first time."
	@$(PYTHON) -m venv .venv-play
	@.venv-play/bin/python -m pip install --disable-pip-version-check -q -r requirements-play.txt
	@touch $@

tests/play/browser/node_modules: tests/play/browser/package.json tests/play/browser/package-lock.json
	@npm ci --prefix tests/play/browser --no-audit --no-fund
	@touch $@

.venv-oldest/installed: requirements.txt requirements-pictures.txt requirements-dev.txt requirements-oldest.txt
	@echo "Installing the oldest supported releases into .venv-oldest: about two minutes and 6 GB (torch with CUDA)."
	@$(PYTHON) -m venv .venv-oldest
	@oldest=$$(grep -oE '^[a-z_]+' requirements-oldest.txt | paste -sd '|' -); \
		{ cat requirements-oldest.txt; cat requirements.txt requirements-pictures.txt requirements-dev.txt | grep -vE "^($$oldest)==|^-r"; } \
		>.venv-oldest/requirements.txt
	@.venv-oldest/bin/python -m pip install --disable-pip-version-check -q $(if $(OLDEST_INDEX),--extra-index-url $(OLDEST_INDEX)) \
		-r .venv-oldest/requirements.txt
	@touch $@

# The Dockerfile really built, without Docker, and its worker really run; as root, with buildah and debootstrap.
image-test: .venv/test-installed
	$(BIN)/python -m tests.image

hub-files: .venv/test-installed
	$(BIN)/python -m qwen_deploy.hub_files $(REPOSITORY)

clean:
	rm -rf .venv .venv-oldest .venv-play out
