"""Peers that score the same pairs, each behind the same protocol in a process of its own.

    python -m benchmarks.peers.NAME SETTINGS        one adapter a module; SETTINGS is JSON, see `serving.py`

An adapter runs under the interpreter of its peer's own virtual environment (`sides.py` says which), so it imports the
peer, the standard library and `serving.py`, and nothing else of this project. It has three lines of its own: how the
peer loads a checkpoint, how it is asked to score, and its version. Nothing of a peer is changed but what it prints, its
number of threads, and a count of the tokens that it computes.
"""
