"""Small expressions for figures that follow from measured ones; studies are written with them.

    penalty / (penalty + last('loss/train'))      a metric by its name
    metric('pitfall/correct/whole')               a metric whose name is no identifier
    at('accuracy/validation', 500)                a curve after 500 steps
    last('units/median_range')                    a curve at the end of the run

None stands for what a diverged or stuck run never reached, and makes the whole expression None.
With a figure that a run did not measure the expression is unknown: not measured is not bad.
"""

import ast
import functools
import math
import operator
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Protocol, Tuple

from bn_keras.config import ConfigError
from bn_keras.results import DIVERGED

Number = Optional[float]
LONGEST = 200  # characters: nobody reads more, and Python's parser has its limits
_OPERATORS: Dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}
# The functions, and the types of their arguments.
_FUNCTIONS = {"metric": (str,), "at": (str, int), "last": (str,)}


class ExpressionError(ConfigError):
    """A text that is no such expression; the message names it."""


class NotMeasured(LookupError):
    """An expression is about a figure that the run did not measure."""


class Measured(Protocol):
    """The fields of a Row that expressions read."""

    @property
    def status(self) -> str: ...

    @property
    def steps(self) -> Optional[int]: ...

    @property
    def metrics(self) -> Mapping[str, Number]: ...

    @property
    def curves(self) -> Mapping[str, List[List[Any]]]: ...


def evaluate(expression: str, row: Measured) -> Number:
    """The value of an expression for a row.

    Args:
        expression: as the head of this file describes it.
        row: a Row of `bn_keras.study`.

    Returns:
        A finite number, or None where a part of it is None or the result is not finite.

    Raises:
        ExpressionError: not an expression of this kind.
        NotMeasured: the row lacks a metric, or a curve has no point at the step.
    """
    value = _value(_parsed(expression), row)
    return value if value is not None and math.isfinite(value) else None


def names_in(expression: str) -> Tuple[List[str], List[str]]:
    """Names of the metrics and of the curves that an expression reads.

    Raises:
        ExpressionError: not an expression.
    """
    metrics: List[str] = []
    curves: List[str] = []
    parsed = _parsed(expression)
    called = [node for node in ast.walk(parsed) if isinstance(node, ast.Call)]
    functions = [call.func for call in called]
    for call in called:
        names = metrics if _function(call) == "metric" else curves
        names.append(_arguments(call)[0])
    for node in ast.walk(parsed):
        if isinstance(node, ast.Name) and node not in functions:
            metrics.append(node.id)
    return metrics, curves


@functools.lru_cache(maxsize=None)
def _parsed(expression: str) -> ast.expr:
    """The tree of an expression, every node of which is allowed."""
    problem = None
    if len(expression) > LONGEST:
        problem = f"it has {len(expression)} characters, expected up to {LONGEST}"
    else:
        try:
            parsed = ast.parse(expression.strip(), mode="eval").body
            problem = next(_problems(parsed), None)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            problem = str(error)
    if problem is not None:
        raise ExpressionError(
            f"expression {expression!r}: {problem}; expected numbers and names of metrics joined "
            "by + - * / and parentheses, metric('NAME'), at('CURVE', STEP) or last('CURVE')"
        )
    return parsed


def _problems(node: Any) -> Iterator[str]:
    """A text for each part of a tree that is not allowed."""
    shown = f"{ast.unparse(node)!r} is not allowed"
    if isinstance(node, ast.Constant):
        number: Any = node.value
        if type(number) not in (int, float) or not math.isfinite(number):
            yield shown
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        yield from _problems(node.left)
        yield from _problems(node.right)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield from _problems(node.operand)
    elif isinstance(node, ast.Call):
        kinds = _FUNCTIONS.get(_function(node))
        given = [type(argument) for argument in _arguments(node)]
        if kinds is None or node.keywords or given != list(kinds) or len(node.args) != len(kinds):
            yield shown
    elif not isinstance(node, ast.Name):
        yield shown


def _function(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _arguments(call: ast.Call) -> List[Any]:
    """Values of the arguments that are constants."""
    return [part.value for part in call.args if isinstance(part, ast.Constant)]


def _value(node: Any, row: Measured) -> Number:
    if isinstance(node, ast.Constant):
        number: Any = node.value
        return float(number)
    if isinstance(node, ast.Name):
        return _metric(row, node.id)
    if isinstance(node, ast.UnaryOp):
        value = _value(node.operand, row)
        return None if value is None else -value
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left, row), _value(node.right, row)
        if left is None or right is None or (isinstance(node.op, ast.Div) and right == 0):
            return None
        return _OPERATORS[type(node.op)](left, right)
    if _function(node) == "at":
        return _at(row, *_arguments(node))
    read = _metric if _function(node) == "metric" else _last
    return read(row, *_arguments(node))


def _metric(row: Measured, name: str) -> Number:
    if name not in row.metrics:
        raise NotMeasured(name)
    return row.metrics[name]


def _at(row: Measured, curve: str, step: int) -> Number:
    values: Dict[int, Number] = {reached: value for reached, value in row.curves.get(curve, ())}
    if step in values:
        return values[step]
    if row.status == DIVERGED and row.steps is not None and step >= row.steps:
        return None
    raise NotMeasured(f"{curve} at step {step}")


def _last(row: Measured, curve: str) -> Number:
    if row.status == DIVERGED:
        return None  # it never came to its end
    points = row.curves.get(curve)
    if not points:
        raise NotMeasured(curve)
    final: Number = points[-1][1]
    return final
