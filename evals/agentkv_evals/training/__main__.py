"""`python -m agentkv_evals.training`: world, tokenizer, train, export, evaluate, sample."""

from agentkv_evals.training.cli import app

if __name__ == "__main__":
    app()
