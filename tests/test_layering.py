"""The shape of the package: imports flow one way, names are documented, files stay small."""

import ast
import dataclasses
import graphlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import optax_zoo as zoo

PACKAGE = Path(inspect.getfile(zoo)).parent
# Arrays, trees, scalars, arguments: they know no optimizer. Everything else builds on them.
NUMERICS = {
    "_blas",
    "_blocks",
    "_checks",
    "_exchange",
    "_host",
    "_host_roots",
    "_large_batch",
    "_layers",
    "_links",
    "_matrix_roots",
    "_minimax",
    "_model_scale",
    "_moments",
    "_owners",
    "_routes",
    "_sampling",
    "_states",
    "_triangles",
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
files = pytest.mark.parametrize("path", FILES.values(), ids=FILES.keys())


def imported(path: Path) -> set[str]:
    """Every module that a file imports, `from a import b` as both `a` and `a.b`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def imported_here(path: Path) -> set[str]:
    """The modules of the package that a file imports."""
    return {name.removeprefix("optax_zoo.") for name in imported(path)} & set(FILES)


def test_imports_have_no_cycle():
    graph = {name: imported_here(path) for name, path in FILES.items()}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert order[-1] == "__init__"


@pytest.mark.parametrize("name", sorted(NUMERICS))
def test_numerics_know_no_optimizer(name):
    assert imported_here(FILES[name]) <= NUMERICS


@files
def test_no_private_module_of_others_is_imported(path):
    for name in imported(path):
        root, *rest = name.split(".")
        assert root == "optax_zoo" or not any(part.startswith("_") for part in rest), name


@files
def test_files_stay_below_300_lines_without_docstrings(path):
    source = path.read_text()
    documented = 0
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and ast.get_docstring(
            node
        ):
            text = node.body[0]
            documented += (text.end_lineno or text.lineno) - text.lineno + 1
    assert len(source.splitlines()) - documented < 300


@files
def test_every_module_is_private_and_says_what_it_is(path):
    assert path.stem.startswith("_")
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_no_name_is_missing_in_all_which_is_sorted():
    assert zoo.__all__ == sorted(zoo.__all__)
    modules = {module.name for module in pkgutil.iter_modules(zoo.__path__)}
    assert set(zoo.__all__) == {n for n in vars(zoo) if not n.startswith("_")} - modules


FUNCTIONS = [name for name in zoo.__all__ if inspect.isfunction(getattr(zoo, name))]
CLASSES = [name for name in zoo.__all__ if inspect.isclass(getattr(zoo, name))]


def test_public_names_are_functions_and_classes():
    assert sorted(FUNCTIONS + CLASSES) == zoo.__all__


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_is_documented_in_order(name):
    text = inspect.getdoc(getattr(zoo, name)) or ""
    sections = ["Args:", "Returns:", "Raises:", "Examples:", "References:"]
    places = [text.find(f"\n{section}\n") for section in sections]
    assert -1 not in places
    assert places == sorted(places)
    assert ">>> " in text[places[3] : places[4]]
    assert "https://" in text[places[4] :]
    assert len(text.splitlines()[0]) <= 100


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_argument_of_a_public_function_is_described(name):
    function = getattr(zoo, name)
    text = (inspect.getdoc(function) or "").partition("\nArgs:\n")[2].partition("\nReturns:\n")[0]
    described = [line.split(":")[0].strip() for line in text.splitlines() if line[2:3].strip()]
    assert described == list(inspect.signature(function).parameters)


@pytest.mark.parametrize("name", CLASSES)
def test_a_public_class_describes_its_fields_and_has_an_example(name):
    text = inspect.getdoc(getattr(zoo, name)) or ""
    attributes, _, examples = text.partition("\nAttributes:")[2].partition("\nExamples:\n")
    kind = getattr(zoo, name)
    fields = [f.name for f in dataclasses.fields(kind)] if not hasattr(kind, "_fields") else None
    for field in fields or kind._fields:
        assert f"\n  {field}: " in attributes
    assert ">>> " in examples


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_functions_arguments_are_spelled_out_and_typed(name):
    signature = inspect.signature(getattr(zoo, name))
    for parameter in signature.parameters.values():
        # What `create` passes on depends on the optimizer; `optax.inject_hyperparams` takes others.
        passed_on = name == "create" and parameter.name == "kwargs"
        assert passed_on or parameter.kind not in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        )
        assert parameter.annotation is not parameter.empty
    assert signature.return_annotation is not signature.empty
