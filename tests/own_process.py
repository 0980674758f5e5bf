"""The process of the tests, before torch is imported: import this first.

Torch reads once how long a thread that waits for others spins. Workers of pytest share the cores, so they wait as the
program itself does; otherwise they spin on cores that another worker's test needs.
"""

from rerank_cli.machine.this_process import prepare_process

prepare_process(online=True)
