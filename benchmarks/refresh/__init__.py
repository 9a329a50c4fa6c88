"""What Shampoo's steps and refreshes cost: `python -m benchmarks.refresh`."""
