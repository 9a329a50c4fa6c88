"""One BLAS thread for a while, for several threads at once."""

import threading
from typing import Any

import threadpoolctl


class OneBlasThread:
    """One BLAS thread while anyone is inside: LAPACK's bits depend on their number.

    Most limits are the process': the first one in remembers what they were, the last one out
    restores it. Under OpenMP they are the thread's, so everyone who comes in sets them.
    """

    def __init__(self):
        self.lock = threading.Lock()
        self.inside = 0
        self.first: tuple[threadpoolctl.ThreadpoolController, Any] | None = None

    def __enter__(self) -> None:
        with self.lock:
            # JAX's first eigh loads SciPy's BLAS; loaded later, it would escape the limit.
            import scipy.linalg  # noqa: F401

            controller = threadpoolctl.ThreadpoolController()  # 1 ms: finds what is loaded now
            _release(controller)
            limit = controller.limit(limits=1, user_api="blas")
            _release(controller)
            if not self.inside:
                self.first = controller, limit
            self.inside += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                self.restore()

    def restore(self) -> None:
        if self.first is not None:
            (controller, limit), self.first = self.first, None
            _release(controller)
            limit.restore_original_limits()
            _release(controller)


def _release(controller: threadpoolctl.ThreadpoolController) -> None:
    """Without it threadpoolctl >= 3.8 silently obeys only the thread that first set a limit."""
    for library in controller.lib_controllers:
        if hasattr(library, "clear_controlling_thread"):
            library.clear_controlling_thread(force=True)
