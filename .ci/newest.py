"""Prints the versions that are installed; fails where JAX or Optax is not the newest to be had.

The newest is what pip would install of each alone, for this interpreter. So no upper bound can hide
here, be it the package's or that of something it or its tests depend on.
"""

import json
import platform
import subprocess
import sys
from importlib.metadata import version

HELD = ["jax", "jaxlib", "optax"]
SHOWN = ["flax", "numpy"]  # what tests depend on may hold these back

options = ["--dry-run", "--ignore-installed", "--no-deps", "--quiet", "--report", "-"]
pip = [sys.executable, "-m", "pip", "install", *options, *HELD, *SHOWN]
report = json.loads(subprocess.run(pip, check=True, stdout=subprocess.PIPE).stdout)
newest = {item["metadata"]["name"]: item["metadata"]["version"] for item in report["install"]}

print(f"Python {platform.python_version()}")
for name in HELD + SHOWN:
    print(f"{name} {version(name)}; the newest is {newest[name]}")
behind = [name for name in HELD if version(name) != newest[name]]
if behind:
    sys.exit(f"not the newest: {', '.join(behind)}")
