"""Rengo's tests.

Each process of a run computes on one thread, as a training child does by itself: several workers
share the machine, and threads of torch and of BLAS that wait for each other take it from all.
"""

import os

# before numpy and torch are imported, which read it once; children take it over
os.environ.update(
    dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
)
