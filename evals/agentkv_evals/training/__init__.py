"""Training of the embedded model: tokenizer, constructed initialisation, loop, export, evaluation, samples.

Start in `__main__.py` (the commands) and `model.py` (what is trained).
"""
