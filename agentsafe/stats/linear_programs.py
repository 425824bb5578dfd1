"""Solve the linear programs for two lines and for mixtures of runs, in PuLP.

They are the exact definitions. `stats.regression` and `frontier.dominance` have closed forms that
compute the same for ten thousand resamples; tests compare the two.
"""

from collections.abc import Sequence

import numpy as np
import pulp

from agentsafe.errors import UserError

SOLVERS = ("cbc", "highs")


def solver(name: str) -> pulp.LpSolver:
    """Return PuLP's solver object: `cbc` comes with the package cbcbox, `highs` with highspy.

    Raises:
        UserError: the solver is not installed.
    """
    try:
        if name == "cbc":
            import cbcbox

            made = pulp.COIN_CMD(msg=False, path=cbcbox.cbc_bin_path())
        else:
            made = pulp.HiGHS(msg=False)
        usable = bool(made.available())
    except (ImportError, pulp.PulpSolverError):
        usable = False
    if not usable:
        raise UserError(f"frontier.solver: '{name}' is not installed here; take the other one")
    return made


def _solve(program: pulp.LpProblem, name: str) -> None:
    program.solve(solver(name))
    if program.status != pulp.LpStatusOptimal:
        raise RuntimeError(f"{program.name}: {pulp.LpStatus[program.status]}")


def supporting_line(x: np.ndarray, y: np.ndarray, solver_name: str = "cbc") -> tuple[float, float]:
    """Find the line on or above every point with the smallest sum of slacks.

    minimise Σ (slope·xᵢ + intercept - yᵢ)  subject to  slope·xᵢ + intercept ≥ yᵢ

    This is quantile regression at τ = 1 (Koenker & Bassett, Regression quantiles, Econometrica 46
    (1978) 33).

    Args:
        x: n ≥ 2 numbers that are not all equal, else the program is unbounded.
        y: n numbers.
        solver_name: one of `SOLVERS`.

    Returns:
        (slope, intercept).
    """
    program = pulp.LpProblem("supporting_line", pulp.LpMinimize)
    slope, intercept = program.add_variable("slope"), program.add_variable("intercept")
    height = {i: slope * float(x[i]) + intercept for i in range(len(x))}
    program += pulp.lpSum(height[i] - float(y[i]) for i in height)
    for i in height:
        program += height[i] >= float(y[i])
    _solve(program, solver_name)
    return slope.value(), intercept.value()


def least_absolute_line(
    x: np.ndarray, y: np.ndarray, solver_name: str = "cbc"
) -> tuple[float, float]:
    """Find the least-absolute-deviation line that is symmetric in both axes.

    minimise Σ |a·xᵢ + b·yᵢ - c|  subject to  |a| + |b| = 1

    The two signs of b (with a ≥ 0) are two linear programs; the one with the smaller sum is taken.
    Absolute values become constraints as in Wagner, Linear programming techniques for regression
    analysis, JASA 54 (1959) 206.

    Args:
        x: n ≥ 2 numbers.
        y: n numbers.
        solver_name: one of `SOLVERS`.

    Returns:
        (slope, intercept); NaN for a vertical line.
    """
    solved = [_least_absolute(x, sign * y, solver_name) for sign in (1, -1)]
    sign = 1 if solved[0][0] <= solved[1][0] else -1
    _, a, c = solved[0] if sign == 1 else solved[1]
    b = sign * (1 - a)
    return (-a / b, c / b) if abs(b) > 1e-6 else (float("nan"), float("nan"))


def _least_absolute(x: np.ndarray, y: np.ndarray, solver_name: str) -> tuple[float, float, float]:
    program = pulp.LpProblem("least_absolute_line", pulp.LpMinimize)
    a, c = program.add_variable("a", 0, 1), program.add_variable("c")
    off = [program.add_variable(f"off_{i}", 0) for i in range(len(x))]
    program += pulp.lpSum(off)
    for i, distance in enumerate(off):
        residual = a * float(x[i]) + (1 - a) * float(y[i]) - c
        program += distance >= residual
        program += distance >= -residual
    _solve(program, solver_name)
    return pulp.value(program.objective), a.value(), c.value()


def best_mixtures(
    points: np.ndarray, solver_name: str = "cbc"
) -> list[tuple[float, dict[int, float]]]:
    """Find for each point the mixture of the other points that beats it by the largest margin.

    maximise margin  subject to  Σⱼ wⱼ pⱼ ≥ pᵢ + margin (both axes),  Σⱼ wⱼ = 1,  w ≥ 0,  wᵢ = 0

    This is the linear program for dominance by a mixed strategy (Shoham & Leyton-Brown, Multiagent
    Systems (2009), section 4.5). A mixture is a real agent: it picks the checkpoint at random
    before each episode. The n programs share no variable and are solved as one.

    Args:
        points: shape (n, 2), n ≥ 2.
        solver_name: one of `SOLVERS`.

    Returns:
        Per point (margin, {other's number: weight}); above 0 the mixture dominates the point,
        below 0 no mixture does.
    """
    program = pulp.LpProblem("best_mixtures", pulp.LpMaximize)
    numbers = range(len(points))
    margins = [program.add_variable(f"margin_{i}") for i in numbers]
    weights = {
        (i, j): program.add_variable(f"w_{i}_{j}", 0) for i in numbers for j in numbers if i != j
    }
    program += pulp.lpSum(margins)
    for i in numbers:
        others = [j for j in numbers if j != i]
        program += pulp.lpSum(weights[i, j] for j in others) == 1
        for axis in range(points.shape[1]):
            mixed = pulp.lpSum(weights[i, j] * float(points[j, axis]) for j in others)
            program += mixed >= float(points[i, axis]) + margins[i]
    _solve(program, solver_name)
    mixtures: list[tuple[float, dict[int, float]]] = [(margin.value(), {}) for margin in margins]
    for (i, j), weight in weights.items():
        if weight.value() > 1e-9:
            mixtures[i][1][j] = weight.value()
    return mixtures


def describe_mixture(weights: dict[int, float], names: Sequence[str]) -> str:
    """Write a mixture in words: `0.62 qwen2.5-7b+help.b0.1 + 0.38 qwen2.5-7b`."""
    heaviest_first = sorted(weights.items(), key=lambda item: -item[1])
    return " + ".join(f"{weight:.2f} {names[number]}" for number, weight in heaviest_first)
