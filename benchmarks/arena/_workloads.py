"""The workloads by name."""

from benchmarks.arena._workload import Workload
from benchmarks.arena.autoencoder import AUTOENCODER
from benchmarks.arena.language_model import LANGUAGE_MODEL
from benchmarks.arena.matrix import MATRIX
from benchmarks.arena.softmax import SOFTMAX

WORKLOADS: dict[str, Workload] = {
    "autoencoder": AUTOENCODER,
    "language_model": LANGUAGE_MODEL,
    "matrix": MATRIX,
    "softmax": SOFTMAX,
}
