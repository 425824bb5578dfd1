"""Name a checkpoint by its lineage: its source and the stages of its training.

`qwen2.5-7b+safe.gpt5m.b0.1+help.gpt5m.b0.1.s0` is the source `qwen2.5-7b`, trained first on the
judge gpt5m's `safe` pairs with β 0.1, then on its `help` pairs, with split seed 0. Settings that
a recipe gives to one stage follow its β: `help.gpt5m.b0.1.lr1e-05.e2`. Results are compared
between *conditions*, which are lineages without judge and seed: `qwen2.5-7b+safe.b0.1+help.b0.1`.
A checkpoint whose rollouts a donor gave has the donor's name before its own, `gpt5m:gpt-4.1`, so
that it is none of the run's own.
"""

import re
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from agentsafe.errors import UserError

#: Losses of a preference pair, by TRL's names.
Loss = Literal["sigmoid", "ipo", "robust", "apo_zero", "sigmoid_norm"]

SOURCE = "source"  # the recipe of a checkpoint that was not trained
SFT = "sft"  # the objective that imitates rollouts: it has no pairs, so no β and no loss of a pair
_WORD = r"[a-z0-9-]+"
_NUMBER = r"\d+(?:\.\d+)?(?:e-?\d+)?"
_DONOR = ":"  # after a donor's name; no name of a config has it
_SOURCE = re.compile(rf"(?:[a-z0-9][a-z0-9._-]*{_DONOR})?[a-z0-9][a-z0-9._-]*")
_LOSSES = {loss.replace("_", "-"): loss for loss in get_args(Loss)}  # as names write them
# The judge is optional and lazy: after sft, e2 means two epochs, not a judge of that name.
_STAGE = re.compile(
    rf"(?P<objective>{_WORD})(?:\.(?P<judge>{_WORD}))??(?:\.b(?P<beta>{_NUMBER}))?"
    rf"(?:\.lr(?P<learning_rate>{_NUMBER}))?(?:\.e(?P<num_train_epochs>\d+))?"
    rf"(?:\.n(?P<max_steps>\d+))?(?:\.(?P<loss>{'|'.join(_LOSSES)}))?",
    re.ASCII,
)
_SEED = re.compile(r"(?P<rest>.+)\.s(?P<seed>\d+)", re.ASCII)


@dataclass(frozen=True)
class Stage:
    """One training run: an objective, the judge whose labels made its data, and its own settings.

    Attributes:
        objective: what the run trains for, such as `safe`.
        judge: None in a condition.
        beta: DPO's β; None for the objective `sft`.
        learning_rate: of this stage alone; None takes the config's, as in all that follow.
        num_train_epochs: of this stage alone.
        max_steps: of this stage alone.
        loss: of a pair, of this stage alone.
    """

    objective: str
    judge: str | None
    beta: float | None
    learning_rate: float | None = None
    num_train_epochs: int | None = None
    max_steps: int | None = None
    loss: Loss | None = None

    def __str__(self) -> str:
        parts = {
            ".": self.judge,
            ".b": _number(self.beta),
            ".lr": _number(self.learning_rate),
            ".e": self.num_train_epochs,
            ".n": self.max_steps,
        }
        given = [f"{sign}{value}" for sign, value in parts.items() if value is not None]
        loss = "" if self.loss is None else f".{self.loss.replace('_', '-')}"
        return "".join([self.objective, *given, loss])


def _number(value: float | None) -> str | None:
    """Write a number so that it reads back exactly, a whole one without a point."""
    return None if value is None else repr(float(value)).removesuffix(".0")


def _read(text: str) -> Stage | None:
    """Read a stage's name; None if it is not one, or has a β where its objective has none."""
    found = _STAGE.fullmatch(text)
    if not found:
        return None
    kinds = {"beta": float, "learning_rate": float, "num_train_epochs": int, "max_steps": int}
    numbers: dict[str, Any] = {
        name: kind(found[name]) for name, kind in kinds.items() if found[name]
    }
    is_sft = found["objective"] == SFT
    if ("beta" in numbers) == is_sft or (is_sft and found["loss"]):
        return None
    loss = _LOSSES.get(found["loss"] or "")
    return Stage(found["objective"], found["judge"], **{"beta": None, **numbers}, loss=loss)


def is_ambiguous_judge(name: str) -> bool:
    """Return whether a judge's name reads as a setting in the name of an `sft` checkpoint."""
    try:
        lineage = Lineage.parse(f"x+{SFT}.{name}")
    except UserError:
        return True
    return lineage != Lineage("x", (Stage(SFT, name, None),))


def donated(donor: str, checkpoint: str) -> str:
    """Name a donor's checkpoint, so that it differs from all of a run's own."""
    return f"{donor}{_DONOR}{checkpoint}"


def donor_of(checkpoint: str) -> str | None:
    """Return the donor that gave a checkpoint's rollouts; None for a run's own checkpoint."""
    donor, mark, _ = checkpoint.partition(_DONOR)
    return donor if mark else None


@dataclass(frozen=True)
class Lineage:
    """A source checkpoint, the stages that trained it, and the split seed of the training."""

    source: str
    stages: tuple[Stage, ...] = ()
    seed: int | None = None

    def __str__(self) -> str:
        seed = "" if self.seed is None else f".s{self.seed}"
        return "+".join([self.source, *map(str, self.stages)]) + seed

    @property
    def recipe(self) -> str:
        """Join the objectives in order, such as `safe-then-help`; `source` without a stage.

        An objective is followed by its stage's own settings, and by its β where stages differ in
        it: `safe.b0.1-then-help.b0.05`. So source, recipe and β are those of one condition.
        """
        shared = len(self._betas) < 2
        stages = (
            replace(stage, judge=None, beta=None if shared else stage.beta) for stage in self.stages
        )
        return "-then-".join(map(str, stages)) or SOURCE

    @property
    def beta(self) -> float | None:
        """Return the β of all stages that have one; None if none has or if they differ."""
        return next(iter(self._betas)) if len(self._betas) == 1 else None

    @property
    def _betas(self) -> set[float]:
        return {stage.beta for stage in self.stages if stage.beta is not None}

    @property
    def parent(self) -> "Lineage | None":
        """Return the lineage that the last stage started from; None for a source."""
        if not self.stages:
            return None
        stages = self.stages[:-1]
        return Lineage(self.source, stages, self.seed if stages else None)

    @property
    def condition(self) -> "Lineage":
        """Return the lineage without judge and seed; results are averaged over both."""
        return Lineage(self.source, tuple(replace(stage, judge=None) for stage in self.stages))

    @classmethod
    def parse(cls, name: str) -> "Lineage":
        """Parse a name, so that `str(Lineage.parse(name)) == name`.

        Raises:
            UserError: the name is not of the form `source[+objective[.judge].bβ[…]]…[.sSEED]`.
        """
        source, *rest = name.split("+")
        seed = None
        if rest and (match := _SEED.fullmatch(rest[-1])):
            rest[-1], seed = match["rest"], int(match["seed"])
        stages = tuple(stage for text in rest if (stage := _read(text)))
        if _SOURCE.fullmatch(source) and len(stages) == len(rest):
            lineage = cls(source, stages, seed)
            if str(lineage) == name:  # '.b0.10' or '.s00' would be second names of a checkpoint
                return lineage
        raise UserError(
            f"'{name}' is not a lineage; write it like 'qwen2.5-7b+safe.gpt5m.b0.1.s0': the "
            "source, +objective.judge.bβ for each stage, then .sSEED"
        )
