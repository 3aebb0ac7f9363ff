# make demo  - install into .venv and run the multi-agent demo
# make test  - install into .venv and run the tests
# make fuzz  - run schemathesis against the server
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check fuzz format train clean

demo: $(STAMP)
	$(BIN)/agentkv demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# Every route of a server of the embedded model, asked thousands of things; see schemathesis.toml.
FUZZ_PORT ?= 18434
fuzz: $(STAMP)
	$(BIN)/agentkv serve --port $(FUZZ_PORT) --context-length 512 --api-key fuzz --no-access-log & server=$$!; \
	trap "kill $$server" EXIT INT TERM; \
	$(BIN)/schemathesis run http://127.0.0.1:$(FUZZ_PORT)/openapi.json --header 'Authorization: Bearer fuzz' \
		--wait-for-schema 60 --request-timeout 60 --max-examples 12 --seed 1 --continue-on-failure

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Trains a model like that of the repository from nothing, in four pieces of at most ten minutes on one H100 or H200 (27
# minutes of training), each resumed from the weights of the one before, exports it to out/train/model and measures it. The
# repository's own model had older worlds in its first three pieces: evals/agentkv_evals/training/LOG.md.
TRAIN := $(BIN)/python -m agentkv_evals.training
TOKENIZER := out/train/tokenizer.json
train: $(STAMP)
	$(TRAIN) tokenizer --out $(TOKENIZER)
	$(TRAIN) train start --minutes 4.2 --seed 10 --tokenizer $(TOKENIZER) --out out/train/start
	$(TRAIN) train middle --resume out/train/start/weights --minutes 7.4 --seed 11 --tokenizer $(TOKENIZER) \
		--out out/train/middle
	$(TRAIN) train finish --resume out/train/middle/weights --minutes 7.4 --seed 12 --tokenizer $(TOKENIZER) \
		--out out/train/finish
	$(TRAIN) train extend --resume out/train/finish/weights --minutes 7.6 --seed 13 --tokenizer $(TOKENIZER) \
		--out out/train/extend
	$(TRAIN) export --weights out/train/extend/weights --tokenizer $(TOKENIZER) --model out/train/model
	$(TRAIN) evaluate --model out/train/model --careless --per-cell 16 --workers 8 \
		--topology parallel --topology chain --topology debate --json out/train/evaluation.json

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "agentkv needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt 'torch==2.13.0'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) out build dist
