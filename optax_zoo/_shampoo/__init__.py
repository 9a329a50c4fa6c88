"""Shampoo: statistics, their roots on a schedule, the transformation, the optimizer, the plan."""
