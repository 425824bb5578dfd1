"""Write a small release in the form of the paper's: folders, file names and JSON lines."""

import json
import random
import subprocess
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

EVALUATORS = {"gpt5m": "gpt-5-mini", "q32": "Qwen_Qwen3-32B"}
SCORE_KEYS = {"agent_safe": "ToolCallRisk", "agent_help_ignore_safety": "Helpfulness"}
BASES = {"qwen2.5-7b": ("Qwen_Qwen2.5-7B-Instruct", "Qwen2.5-7B")}
RECIPES = ("safe", "help", "both", "safe-help", "help-safe")
#: Means (safety, helpfulness) of the generated labels.
MEANS = {
    "source": (1.3, 2.1),
    "safe": (2.6, 1.2),
    "help": (1.3, 2.3),
    "both": (2.2, 1.7),
    "safe-help": (2.0, 1.8),
    "help-safe": (2.3, 1.5),
}


class Release:
    """A release of `cases` cases in `root`; `write` writes all of it, other methods parts."""

    def __init__(self, root: Path, cases: int = 12, shards: int = 2):
        self.root = root
        self.cases = cases
        self.shards = shards

    def write(self) -> "Release":
        """Write a label set of three checkpoints, and a result set of a source and ten runs."""
        labels = self.root / "data/raw_data_by_eval/gpt5m"
        for folder, quantization in (
            ("gpt-4.1", ""),
            ("Qwen_Qwen3-32B", "_int4"),
            ("Qwen_Qwen3-32B", "_int8"),
        ):
            self.checkpoint(labels, folder, "gpt5m", "source", quantization=quantization)
        results = self.root / "results/match_eval_results"
        hub, nickname = BASES["qwen2.5-7b"]
        for judge in EVALUATORS:
            self.checkpoint(results, hub, judge, "source")
            for recipe in RECIPES:
                folder = self.trained_name(nickname, recipe, judge, seed=0)
                self.checkpoint(results, folder, judge, recipe)
        return self

    @staticmethod
    def trained_name(nickname: str, recipe: str, judge: str, seed: int, beta: str = "") -> str:
        """Build a trained checkpoint's folder name, such as dpo_Phi-4_safe_q32_s0_help_q32_s0."""
        stages = (f"_{objective}_{judge}{beta}_s{seed}" for objective in recipe.split("-"))
        return f"dpo_{nickname}{''.join(stages)}"

    def checkpoint(
        self,
        parent: Path,
        folder: str,
        judge: str,
        recipe: str,
        *,
        quantization: str = "",
        only: Iterable[int] | None = None,
    ) -> Path:
        """Write all shards of a checkpoint with a judge's labels, or `only` some of its cases."""
        place = parent / folder
        place.mkdir(parents=True, exist_ok=True)
        bounds = [self.cases * number // self.shards for number in range(self.shards + 1)]
        for first, end in pairwise(bounds):
            indices = [i for i in range(first, end) if only is None or i in only]
            stem = (
                f"{folder}_emu-Qwen_Qwen3-8B_eval-{EVALUATORS[judge]}{quantization}"
                f"_r{first}-{end}_0101_120000"
            )
            rollouts = [rollout(i, f"{folder}{quantization}") for i in indices]
            write_lines(place / f"{stem}.jsonl", rollouts)
            for number, kind in enumerate(SCORE_KEYS):
                scores = [
                    self.score(folder + quantization, judge, recipe, number, i) for i in indices
                ]
                labels = [label(kind, line, score) for line, score in enumerate(scores)]
                write_lines(place / f"{stem}_eval_{kind}.jsonl", labels)
        return place

    def score(self, name: str, judge: str, recipe: str, metric: int, case: int) -> int:
        """Generate a score that is always the same for the same label."""
        draw = random.Random(f"{name} {judge} {metric} {case}").gauss(MEANS[recipe][metric], 1)
        return min(max(round(draw), 0), 3)

    def file(self, kind: str = "", folder: str = "gpt-4.1", first: int = 0) -> Path:
        """Return a file of the label set: kind "" for rollouts, or a key of SCORE_KEYS."""
        suffix = f"_eval_{kind}.jsonl" if kind else ".jsonl"
        found = sorted((self.root / "data/raw_data_by_eval/gpt5m" / folder).glob(f"*_r{first}-*"))
        ending = [path for path in found if path.name.endswith(suffix)]
        return ending[0] if kind else next(p for p in ending if "_eval_agent" not in p.name)


def rollout(case: int, text: str, *, invented: bool = False) -> dict:
    """Make a line of a rollout file with one executed tool call."""
    log = f"I look first, as {text}.\nAction: BankSearch\nAction Input: {{}}\n"
    if invented:
        log += "Observation: {}\nThought: done\nFinal Answer: done"
    return {
        "input": f"Do task {case}.",
        "output": ": done",
        "intermediate_steps": [
            [["BankSearch", "{}", log], ['{"found": 1}', "summary kept away", "thought kept away"]],
            [{"return_values": {"output": ": done"}, "log": "Final Answer: done", "type": "F"}, ""],
        ],
        "case": {
            "name": f"official_{case}",
            "Toolkits": ["Bank"],
            "User Instruction": f"Do task {case}.",
        },
        "case_idx": case,
    }


def label(kind: str, line: int, score: object) -> dict:
    """Make a line of a label file."""
    return {
        "Evaluator Thought": "long thought",
        "Overall Quantitative Score": f"**{score}**",
        "Evaluator Log Summary": "short summary",
        "eval_scores": {SCORE_KEYS[kind]: score},
        "eval_id": line,
    }


def read_released(root: Path, judge: str, suffix: str, kind: type) -> Iterator[Any]:
    """Decode each line of the paper's label set: of rollouts, or of files with this suffix."""
    decode = msgspec.json.Decoder(kind).decode
    for path in sorted((root / "data/raw_data_by_eval" / judge).rglob(f"*{suffix}.jsonl")):
        if suffix or "_eval_agent" not in path.name:
            yield from map(decode, path.read_bytes().splitlines())


def write_lines(path: Path, records: list[dict]) -> None:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def edit_line(path: Path, number: int, change) -> None:
    """Replace line `number` (from 1) by `change(record)`, a record or raw text."""
    lines = path.read_text().splitlines()
    changed = change(json.loads(lines[number - 1]))
    lines[number - 1] = changed if isinstance(changed, str) else json.dumps(changed)
    path.write_text("\n".join(lines) + "\n")


def as_repository(root: Path) -> tuple[str, str]:
    """Commit a release to a new git repository; return its address and the commit."""

    def git(*arguments: str) -> str:
        author = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(root), *author, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    git("config", "uploadpack.allowFilter", "true")
    git("add", ".")
    git("commit", "-qm", "release")
    commit = git("rev-parse", "HEAD")
    git("commit", "-qm", "later", "--allow-empty")
    return root.as_uri(), commit
