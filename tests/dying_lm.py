"""`examples/distributed_lm.py`, of which one process sends a signal before a step.

    python tests/dying_lm.py SIGNAL TO PROCESS STEP [the example's arguments]

TO is "self" or "parent".
"""

import os
import signal
import sys

import jax

import distributed_lm

name, to, process, last, *arguments = sys.argv[1:]
read = distributed_lm.random_windows


def windows(text, seed, step, *others):
    """The batch of a step; not that of the last."""
    if step == int(last) and jax.process_index() == int(process):
        os.kill(os.getpid() if to == "self" else os.getppid(), signal.Signals[name])
    return read(text, seed, step, *others)


distributed_lm.random_windows = windows  # in the workers, which run this file as well

if __name__ == "__main__":
    sys.exit(distributed_lm.main(arguments))
