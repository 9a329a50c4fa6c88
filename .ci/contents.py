"""Fails where a wheel or an sdist holds anything but the package and what describes it."""

import sys
import tarfile
import zipfile
from pathlib import PurePosixPath

BESIDES = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}


def names(path: str) -> list[PurePosixPath]:
    """The files of an archive, without the folder that an sdist puts around them."""
    if path.endswith(".whl"):
        with zipfile.ZipFile(path) as wheel:
            return [PurePosixPath(name) for name in wheel.namelist()]
    with tarfile.open(path) as sdist:
        members = [PurePosixPath(member.name) for member in sdist if member.isfile()]
    return [PurePosixPath(*name.parts[1:]) for name in members]


for path in sys.argv[1:]:
    found = names(path)
    package = [name for name in found if name.parts[0] == "optax_zoo"]
    strange = [
        str(name)
        for name in found
        if not (
            (name.parts[0] == "optax_zoo" and (name.suffix == ".py" or name.name == "py.typed"))
            or name.parts[0].endswith(".dist-info")
            or str(name) in BESIDES | {".gitignore"}
        )
    ]
    print(f"{path}: {len(package)} files of the package")
    if strange or PurePosixPath("optax_zoo/py.typed") not in found:
        sys.exit(f"{path} holds {strange or 'no py.typed'}")
