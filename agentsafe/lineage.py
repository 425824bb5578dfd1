"""Name a checkpoint by its lineage: its source and the stages of its training.

`qwen2.5-7b+safe.gpt5m.b0.1+help.gpt5m.b0.1.s0` is the source `qwen2.5-7b`, trained first on the
judge gpt5m's `safe` pairs with β 0.1, then on its `help` pairs, with split seed 0. Results are
compared between *conditions*, which are lineages without judge and seed:
`qwen2.5-7b+safe.b0.1+help.b0.1`.
"""

import re
from dataclasses import dataclass, replace

from agentsafe.errors import UserError

SOURCE = "source"  # the recipe of a checkpoint that was not trained
_WORD = r"[a-z0-9-]+"
_BETA = r"\d+(?:\.\d+)?(?:e-?\d+)?"
_SOURCE = re.compile(r"[a-z0-9][a-z0-9._-]*")
_STAGE = re.compile(rf"(?P<objective>{_WORD})(?:\.(?P<judge>{_WORD}))?\.b(?P<beta>{_BETA})")
_SEED = re.compile(r"(?P<rest>.+)\.s(?P<seed>\d+)")


@dataclass(frozen=True)
class Stage:
    """One DPO run: an objective, the judge whose labels made its pairs, and DPO's β."""

    objective: str
    judge: str | None
    beta: float

    def __str__(self) -> str:
        judge = f".{self.judge}" if self.judge else ""
        return f"{self.objective}{judge}.b{repr(float(self.beta)).removesuffix('.0')}"


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
        """Join the objectives in order, such as `safe-then-help`; `source` without a stage."""
        return "-then-".join(stage.objective for stage in self.stages) or SOURCE

    @property
    def beta(self) -> float | None:
        """Return the β of all stages; None without a stage or if stages differ."""
        betas = {stage.beta for stage in self.stages}
        return betas.pop() if len(betas) == 1 else None

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
            UserError: the name is not of the form `source[+objective[.judge].bβ]…[.sSEED]`.
        """
        source, *rest = name.split("+")
        seed = None
        if rest and (match := _SEED.fullmatch(rest[-1])):
            rest[-1], seed = match["rest"], int(match["seed"])
        matches = [_STAGE.fullmatch(text) for text in rest]
        stages = tuple(Stage(m["objective"], m["judge"], float(m["beta"])) for m in matches if m)
        if _SOURCE.fullmatch(source) and len(stages) == len(rest):
            lineage = cls(source, stages, seed)
            if str(lineage) == name:  # '.b0.10' or '.s00' would be second names of a checkpoint
                return lineage
        raise UserError(
            f"'{name}' is not a lineage; write it like 'qwen2.5-7b+safe.gpt5m.b0.1.s0': the "
            "source, +objective.judge.bβ for each stage, then .sSEED"
        )
