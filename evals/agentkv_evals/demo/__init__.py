"""`agentkv demo`: a LangGraph application of five agents, without and with reuse, and what reuse cost and saved.

Start in `graph.py`, the application itself; `case.py` says what its agents read, `measure.py` where
the tables come from.
"""
