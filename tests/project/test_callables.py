"""The constructors of `_delivery` get other objects as arguments, and not functions that call these objects."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

import pytest

from tests.project.test_architecture import CORE

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_PARAMETERS = 0
"""Largest number of parameters that are functions, in all constructors of `_delivery` together."""

MOST_ARGUMENTS = 2
"""Largest number of functions, bound methods and lambdas that the constructors of `_delivery` pass to others."""

HOOKS = {"OutcomeHook", "StateHook"}
"""Types of the user's hooks, which do not count as functions here."""

Function = ast.FunctionDef | ast.AsyncFunctionDef
DELIVERY = {name: source for name, source in CORE.items() if name.startswith("retailrocket_async._delivery.")}


def classes(source: str) -> list[ast.ClassDef]:
    """Return all classes of a module."""
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]


def functions(of: ast.ClassDef) -> list[Function]:
    """Return the methods and properties of a class."""
    return [node for node in of.body if isinstance(node, Function)]


def names_in(node: ast.AST | None) -> set[str]:
    """Return the names in an annotation, also in an annotation that is a string."""
    found: set[str] = set()
    for each in ast.walk(node) if node is not None else ():
        if isinstance(each, ast.Name):
            found.add(each.id)
        elif isinstance(each, ast.Attribute):
            found.add(each.attr)
        elif isinstance(each, ast.Constant) and isinstance(each.value, str):
            found |= set(re.findall(r"\w+", each.value))
    return found


def function_types(sources: dict[str, str]) -> set[str]:
    """Return `Callable`, its aliases in these modules, and the protocols that describe a function."""
    found = {"Callable", "FunctionType", "MethodType"}
    for source in sources.values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.AnnAssign) and "TypeAlias" in names_in(node.annotation):
                if isinstance(node.target, ast.Name) and "Callable" in names_in(node.value):
                    found.add(node.target.id)
            elif isinstance(node, ast.ClassDef) and "__call__" in {each.name for each in functions(node)}:
                found.add(node.name)
    return found - HOOKS


def methods(sources: dict[str, str]) -> set[str]:
    """Return the names of the methods in these modules that no class uses for a property or an attribute."""
    called: set[str] = set()
    read: set[str] = set()
    for node in (node for source in sources.values() for node in classes(source)):
        for each in functions(node):
            (read if each.decorator_list else called).add(each.name)
        for each in ast.walk(node):
            if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store):
                read.add(each.attr)
            elif isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
                read.add(each.target.id)
    return called - read


def constructors(sources: dict[str, str]) -> Iterator[tuple[ast.ClassDef, Function]]:
    """Yield the constructors of all classes in these modules, each with its class."""
    for source in sources.values():
        for node in classes(source):
            yield from ((node, each) for each in functions(node) if each.name == "__init__")


def function_parameters(sources: dict[str, str]) -> list[str]:
    """Return the parameters of constructors that are functions, as ``Class.parameter``."""
    types = function_types(CORE | sources)
    return sorted(
        f"{node.name}.{argument.arg}"
        for node, constructor in constructors(sources)
        for argument in (*constructor.args.posonlyargs, *constructor.args.args, *constructor.args.kwonlyargs)
        if names_in(argument.annotation) & types
    )


def function_arguments(sources: dict[str, str]) -> list[str]:
    """Return the lambdas, partial functions and methods that constructors pass to others, as ``Class: argument``."""
    known = methods(CORE | sources)
    found: list[str] = []
    for node, constructor in constructors(sources):
        own = {f"self.{each.name}" for each in functions(node) if not each.decorator_list}
        for call in (each for each in ast.walk(constructor) if isinstance(each, ast.Call)):
            for argument in (*call.args, *(keyword.value for keyword in call.keywords)):
                partial = isinstance(argument, ast.Call) and "partial" in names_in(argument.func)
                method = isinstance(argument, ast.Attribute) and (
                    argument.attr in known or ast.unparse(argument) in own
                )
                if partial or method or isinstance(argument, ast.Lambda):
                    found.append(f"{node.name}: {ast.unparse(argument)}")
    return sorted(found)


def test_few_parameters_are_functions() -> None:
    """The constructors of `_delivery` have at most `MOST_PARAMETERS` parameters that are functions, without hooks."""
    found = function_parameters(DELIVERY)

    assert len(found) <= MOST_PARAMETERS, found


def test_few_arguments_are_functions() -> None:
    """If the constructors of `_delivery` make other objects, they pass at most `MOST_ARGUMENTS` functions."""
    found = function_arguments(DELIVERY)

    assert len(found) <= MOST_ARGUMENTS, found


@pytest.mark.parametrize(
    ("parameter", "counts"),
    [
        ("ended: Callable[[], None]", True),
        ("ended: 'Callable[[], None] | None' = None", True),
        ("*, ended: collections.abc.Callable[..., object]", True),
        ("keep: Keep | None", True),
        ("arrived: Arrived", True),
        ("on_outcome: OutcomeHook | None", False),
        ("ledger: Ledger", False),
        ("max_age: float | None = None", False),
    ],
)
def test_a_function_among_the_parameters_is_counted(parameter: str, counts: bool) -> None:  # noqa: FBT001
    """If a parameter is a function, it is counted, whatever its type is called; a hook or an object is not counted."""
    aliases = "Keep: TypeAlias = 'Callable[[Batch], Outcome]'\nclass Arrived(Protocol):\n    def __call__(self): ...\n"
    source = f"{aliases}class Planted:\n    def __init__(self, {parameter}): ..."

    assert len(function_parameters({"planted": source})) == counts


@pytest.mark.parametrize(
    ("argument", "counts"),
    [
        ("lambda: 0", True),
        ("self.end_flight", True),
        ("clock=self.affinity.tell", True),
        ("functools.partial(print, 1)", True),
        ("self", False),
        ("self.size", False),
        ("self.affinity.tell()", False),
        ("buffer", False),
    ],
)
def test_a_function_among_the_arguments_is_counted(argument: str, counts: bool) -> None:  # noqa: FBT001
    """If a constructor passes a lambda, a partial function or a method, it is counted; other arguments are not."""
    source = (
        f"class Planted:\n    def __init__(self, buffer):\n        self.size = 1\n        Other({argument})\n"
        "    def end_flight(self): ...\nclass Affinity:\n    def tell(self): ..."
    )

    assert len(function_arguments({"planted": source})) == counts
