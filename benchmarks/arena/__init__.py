"""The arena: what each optimizer is worth on the same problems, equally tuned."""
