"""Optax's own suites of common tests, which its wheel ships, run over the optimizers here.

The statements before a suite's class are executed, then its table of optimizers is replaced, then
the class: the tests are parametrized while the class is made.
"""

import ast
import functools
import importlib.util
import re
import types
from pathlib import Path
from typing import Any

import optax
import pytest

import optax_zoo as zoo
from laws import TABLE

OPTIMIZERS = [
    {"opt_name": name, "opt_kwargs": dict(entry.converges)}
    for name, entry in TABLE.items()
    if entry.converges is not None
]
BARE = [{**opt, "wrapper_name": None, "wrapper_kwargs": None} for opt in OPTIMIZERS]


class _Lookup:
    """Finds a name in the table, then in the module that the suite would have asked."""

    def __init__(self, fallback: types.ModuleType):
        self._fallback = fallback

    def __getattr__(self, name: str) -> Any:
        return TABLE[name].factory if name in TABLE else getattr(self._fallback, name)


def _suite(module_name: str, class_name: str, tables: dict[str, Any], factories: str) -> type:
    """The class of an Optax test module with other tables and another source of factories."""
    spec = importlib.util.find_spec(module_name)
    assert spec is not None
    assert spec.origin is not None
    statements = ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body
    suite = next(s for s in statements if isinstance(s, ast.ClassDef) and s.name == class_name)
    # The methods that are not about the tables are about Optax's own optimizers.
    suite.body = [
        member
        for member in suite.body
        if any(table in ast.dump(part) for table in tables for part in _decorators(member))
    ]
    before = [
        s
        for s in statements[: statements.index(suite)]
        if not (isinstance(s, ast.ImportFrom) and (s.module or "").startswith("sklearn"))
    ]
    module = types.ModuleType(f"{__name__}.{class_name}")
    names = vars(module)
    exec(compile(ast.Module(before, []), spec.origin, "exec"), names)
    assert {*tables, factories} <= set(names), f"{spec.origin} was rewritten"
    names.update(tables, **{factories: _Lookup(names[factories])})
    exec(compile(ast.Module([suite], []), spec.origin, "exec"), names)
    # pytest asks the class for the module it belongs to.
    names[class_name].__module__ = __name__
    _complex_may_be_refused(names[class_name])
    return names[class_name]


def _complex_may_be_refused(suite: type) -> None:
    """Makes the cases skips in which an optimizer refuses complex parameters in so many words."""

    def lenient(test):
        @functools.wraps(test)
        def run(self):
            try:
                test(self)
            except TypeError as error:
                if not re.search(r"dtype complex\d+, which \w+ does not support", str(error)):
                    raise
                self.skipTest(str(error))

        return run

    for name, test in list(vars(suite).items()):
        if name.startswith("test_"):
            setattr(suite, name, lenient(test))


def _decorators(member: ast.stmt) -> list[ast.expr]:
    return member.decorator_list if isinstance(member, ast.FunctionDef) else []


AliasTest = pytest.mark.slow(
    _suite(
        "optax._src.alias_test",
        "AliasTest",
        {"_OPTIMIZERS_UNDER_TEST": tuple(OPTIMIZERS)},
        factories="alias",
    )
)
ContribTest = pytest.mark.slow(
    _suite(
        "optax.contrib._common_test",
        "ContribTest",
        {
            "_MAIN_OPTIMIZERS_UNDER_TEST": tuple(BARE),
            "_ALL_OPTIMIZERS_UNDER_TEST": tuple(BARE),
        },
        factories="contrib",
    )
)


def test_the_suites_hold_a_case_for_each_optimizer():
    for suite in (AliasTest, ContribTest):
        cases = [name for name in dir(suite) if name.startswith("test_preserve_dtype")]
        assert len(cases) >= 2 * len(OPTIMIZERS)


def test_the_suites_ask_for_the_optimizers_here():
    assert _Lookup(optax.contrib).lamb is zoo.lamb
