"""The search for a learning rate, over powers of a factor."""

from collections.abc import Callable, Mapping

FINE = 10**0.25  # between learning rates at last; √10 at first


def lowest(found: Mapping[int, float]) -> int:
    """The power of the lowest error; of equal ones, as if all diverged, the smaller power."""
    return min(found, key=lambda power: (found[power], power))


def widened(error: Callable[[int], float], step: int, most: int) -> dict[int, float]:
    """Power -> error at three powers, then beyond an edge for as long as that is the best."""
    found = {power: error(power) for power in (-step, 0, step)}
    while len(found) < most:
        best = lowest(found)
        if min(found) < best < max(found):
            break
        beyond = best + (step if best == max(found) else -step)
        found[beyond] = error(beyond)
    return found
