"""Versioned multi-agent reading tasks: data is a generator, a seed and a version, never a file.

Start in `item.py` (what a task is) and `build.py` (how one is made). `split.py` says what is held out of training.
The training of the embedded model, the accuracy suite and the demo read the same worlds.
"""
