"""Small faults that a module could have: where each stands, and what stands there then.

None are planted in annotations, docstrings, asserts, the texts of errors, and in
f-strings, of which Python does not tell the place; no cache is taken away.
"""

import ast
import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

OTHERS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.BitXor: ast.BitOr,
    ast.Break: ast.Continue, ast.Continue: ast.Break,
}  # fmt: skip
"""What an operator, or a statement that has no parts, is taken for."""

NAMES = {"all": "any", "any": "all", "min": "max", "max": "min", "sorted": "list"}
NAMES |= {"reversed": "iter"}
KEPT = {"final", "overload", "cache", "lru_cache", "dataclass", "staticmethod"}
"""Decorators that are left: without one nothing else would come out, or nothing."""

Variant = tuple[ast.AST, str, str]
"""What is replaced, what is done to it, and the text that takes its place."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Another text for the bytes ``start:stop`` of a module, inside a function."""

    module: str
    function: str
    line: int
    operator: str
    start: int
    stop: int
    text: str

    def planted(self, source: str, text: str | None = None) -> str:
        """Return the source with the fault in it, or with another text in its place."""
        raw, new = source.encode(), self.text if text is None else text
        return (raw[: self.start] + new.encode() + raw[self.stop :]).decode()

    def diff(self, source: str) -> str:
        """Return the lines that it changes, without it and with it."""
        sides = source.splitlines(), self.planted(source).splitlines()
        _, _, *lines = difflib.unified_diff(*sides, n=0, lineterm="")
        return "\n".join(line for line in lines if not line.startswith("@@"))

    @property
    def alarm(self) -> str:
        """Return what raises in its place, so that whoever gets there is told."""
        is_part = self.text.startswith("(") or self.text in NAMES.values()
        return "(1 / 0)" if is_part else "raise ZeroDivisionError"


def faults_of(module: str, source: str) -> list[Fault]:
    """Return the faults that a module could have."""
    lines = source.encode().splitlines(keepends=True)
    starts = [0, *accumulate(map(len, lines))]
    found: list[Fault] = []
    for outer, function in _within(ast.parse(source), ""):
        for node, operator, text in _variants(outer):
            start = starts[node.lineno - 1] + node.col_offset
            stop = starts[node.end_lineno - 1] + node.end_col_offset
            place = module, function, node.lineno, operator
            if text.strip("()") != ast.unparse(node).strip("()"):
                found.append(Fault(*place, start, stop, text))
    return found


def _within(node: ast.AST, prefix: str) -> Iterator[tuple[ast.AST, str]]:
    """Yield the nodes that run, each with the name of the function around it."""
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not _is_left(node, field, child):
                inner = prefix
                if isinstance(child, ast.FunctionDef | ast.ClassDef):
                    is_class = isinstance(child, ast.ClassDef)
                    inner += child.name + ("." if is_class else ".<locals>.")
                yield child, inner.partition(".<locals>")[0].rstrip(".")
                yield from _within(child, inner)


def _is_left(node: ast.AST, field: str, child: ast.AST) -> bool:
    match child:
        case ast.Assert() | ast.JoinedStr() | ast.Expr(ast.Constant()):
            return True
        case ast.If(test) if "TYPE_CHECKING" in ast.unparse(test):
            return True
    is_kept = field == "decorator_list" and _name(child) in KEPT
    return is_kept or isinstance(node, ast.Raise) or field in ("annotation", "returns")


def _name(node: ast.AST) -> str:
    """Return the last name of what is called or named: of ``a.b(c)`` it is ``b``."""
    node = node.func if isinstance(node, ast.Call) else node
    return getattr(node, "attr", getattr(node, "id", ""))


# -- what can be done to a node ----------------------------------------------------


def _variants(node: ast.AST) -> Iterator[Variant]:
    match node:
        case ast.Compare(left, ops, right):
            for k, op in enumerate(ops):
                others = [*ops[:k], OTHERS[type(op)](), *ops[k + 1 :]]
                yield _made(node, "compare", ast.Compare(left, others, right))
        case ast.BoolOp(op, values):
            yield _made(node, "and/or", ast.BoolOp(OTHERS[type(op)](), values))
            for k in range(len(values)):
                rest = [*values[:k], *values[k + 1 :]]
                one = rest[0] if len(rest) == 1 else ast.BoolOp(op, rest)
                yield _made(node, "no condition", one)
        case ast.BinOp(left, op, right) if type(op) in OTHERS:
            yield _made(node, "operator", ast.BinOp(left, OTHERS[type(op)](), right))
        case ast.UnaryOp(ast.Not() | ast.USub() | ast.Invert(), operand):
            yield _made(node, "no sign", operand)
        case ast.Constant(bool() as value):
            yield _made(node, "constant", ast.Constant(not value))
        case ast.Constant(int() as value):
            yield _made(node, "constant", ast.Constant(value + 1))
            yield _made(node, "constant", ast.Constant(value - 1))
        case ast.If(test) | ast.IfExp(test) | ast.While(test):
            yield _made(test, "negate", ast.UnaryOp(ast.Not(), test))
        case ast.comprehension(ifs=ifs):
            yield from (_made(x, "no condition", ast.Constant(True)) for x in ifs)
        case ast.Subscript(value, ast.Slice() as bounds, ast.Load()):
            for side in [x for x in bounds._fields if getattr(bounds, x)]:
                parts = {x: getattr(bounds, x) for x in bounds._fields if x != side}
                less = ast.Subscript(value, ast.Slice(**parts), ast.Load())
                yield _made(node, "no bound", less)
        case ast.Call():
            yield from _calls(node)
        case ast.Name(name, ast.Load()) if name in NAMES:
            yield node, "name", NAMES[name]
        case ast.With(items):
            empty = ast.parse("__import__('contextlib').nullcontext()", mode="eval")
            bare = [x.context_expr for x in items if x.optional_vars is None]
            yield from (_made(x, "no context", empty.body) for x in bare)
        case ast.FunctionDef(decorator_list=found):
            taken = [x for x in found if _name(x) not in KEPT]
            yield from ((x, "no decorator", "(lambda x: x)") for x in taken)
        case ast.Return(value) if value and ast.unparse(value) != "None":
            yield node, "return None", "return None"
        case ast.Break() | ast.Continue():
            yield node, "leave or go on", ast.unparse(OTHERS[type(node)]())
        case ast.Expr() | ast.Raise() | ast.Delete() | ast.AugAssign():
            yield node, "no statement", "pass"
        case ast.Assign([ast.Attribute() | ast.Subscript()]):
            yield node, "no statement", "pass"


def _made(node: ast.AST, operator: str, new: ast.AST) -> Variant:
    return node, operator, f"({ast.unparse(new)})"


def _calls(node: ast.Call) -> Iterator[Variant]:
    """Yield a call with two arguments swapped, and with one of those by name left out.

    Those that are True or False stay, as they are turned over elsewhere.
    """
    args, named = node.args, node.keywords
    if _name(node) != "isinstance" and not any(
        isinstance(x, ast.Starred) for x in args
    ):
        for k in range(len(args) - 1):
            swapped = [*args[:k], args[k + 1], args[k], *args[k + 2 :]]
            yield _made(node, "swap arguments", ast.Call(node.func, swapped, named))
    for k, x in enumerate(named):
        if not (isinstance(x.value, ast.Constant) and isinstance(x.value.value, bool)):
            rest = [*named[:k], *named[k + 1 :]]
            yield _made(node, "no argument", ast.Call(node.func, args, rest))
