"""Measure a DPO run: its steps with each way of sharing, and its reference log-probabilities.

    python -m benchmarks.training steps --release FOLDER --suite FOLDER [--pairs 4] [--budget 16384]
    python -m benchmarks.training reference --release FOLDER --suite FOLDER [--cases 4]

The folders hold the paper's release and ToolEmu's two files. The pairs are the release's `safe`
pairs by gpt-5-mini, with the agent's full prompt, at their real lengths up to 8,192 tokens. The
model is a random Qwen3 with a LoRA adapter and a tokenizer trained on the suite's text.

`steps` trains on the same batches, each of one case, with every value of `training.batching` and
with TRL's own trainer, which computes the reference in each batch (`trl`) or knows it
(`trl known`, its `precompute_ref_log_probs`). All ways have the same, real reference, and their
losses must be equal. The row `reference` is what the reference of these pairs costs a run: the rule
computes it once for all runs on one parent, `--runs` of them. Each way runs in its own process, for
its own peak of memory. Tokens are all tokens of the pairs, prompts included, whether or not they
were shared. The first step of each way does not count. `reference` computes the log-probabilities
of all pairs of some cases like TRL's `precompute_ref_log_probs`, pair by pair, and like the rule
`reference`.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import Qwen3Config, Qwen3ForCausalLM
from trl import DPOConfig, DPOTrainer
from trl.trainer.utils import add_fused_lm_head

from agentsafe.preferences.dataset import training_set, with_rows
from agentsafe.preferences.pairs import pairs, rollout_scores
from agentsafe.published import import_published
from agentsafe.rollouts.react import prompts
from agentsafe.suites.toolemu import take_suite
from agentsafe.training.config import Settings
from agentsafe.training.prefix_sharing import prefix_sharing
from agentsafe.training.reference import logps, reference
from agentsafe.training.tokenize import ChatEncoder, Trajectory, fitting, trajectories
from agentsafe.training.trainer import (
    BATCHING,
    Batching,
    Data,
    PairTrainer,
    TrajectoryCollator,
)
from benchmarks.toolemu import text_tokenizer

MAX_LENGTH = 8192
TRL, KNOWN = "trl", "trl known"  # TRL's own trainer, beside the values of `training.batching`
REFERENCE = "reference"
#: Losses of ways whose policy equals its reference may differ by the rounding of long sums.
TOLERANCE = 1e-3


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("steps", "reference"))
    parser.add_argument("--release", required=True, type=Path)
    parser.add_argument("--suite", required=True, type=Path)
    parser.add_argument("--pairs", type=int, default=4, help="pairs of a batch, all of one case")
    parser.add_argument("--budget", type=int, help="tokens of a forward pass (steps)")
    parser.add_argument("--steps", type=int, default=2, help="counted steps, a batch each")
    parser.add_argument("--runs", type=int, default=18, help="runs that share a reference (steps)")
    parser.add_argument("--cases", type=int, default=4, help="cases of the pairs (reference)")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--way", help=argparse.SUPPRESS)  # set in the processes that measure
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.way:
        print(json.dumps(STEPS_OR_REFERENCE[options.what](options)))
        return
    ways = (TRL, KNOWN, *BATCHING, REFERENCE) if options.what == "steps" else (TRL, "once")
    found = {way: measured(way) for way in ways}
    if options.what == "steps":
        losses = [row["result"] for way, row in found.items() if way != REFERENCE]
        assert max(losses) - min(losses) < TOLERANCE, losses
    first = found[TRL]["seconds"]
    print(
        f"{'way':9} {'pairs':>6} {'s':>8} {'pair tokens/s':>14} {'times TRL':>10} {'GB':>6} result"
    )
    for way, row in found.items():
        seconds = row["seconds"]
        print(
            f"{way:9} {row['pairs']:6} {seconds:8.1f} {row['tokens'] / seconds:14.0f} "
            f"{first / seconds:9.1f}x {row['gigabytes']:6.2f} {row['result']:.6f}"
        )


def measured(way: str) -> dict:
    """Measure one way in its own process."""
    command = [sys.executable, "-m", "benchmarks.training", *sys.argv[1:], "--way", way]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def steps(options: argparse.Namespace) -> dict:
    """Time the counted steps, forward and backward, and average their losses."""
    released, tokenizer, told, rows = read(options)
    batches = [part for _, part in rows.group_by("case_id", maintain_order=True)]
    batches = [part.head(options.pairs) for part in batches if len(part) >= options.pairs]
    kept: list[list[tuple[int, int]]] = []
    tokens: dict[int, Trajectory] = {}
    for part in batches[: options.steps + 1]:
        found = trajectories(ChatEncoder(tokenizer), part, released.rollouts, told)
        kept.append(fitting(part, found, MAX_LENGTH)[0])
        tokens |= found
    everything = [pair for fit in kept for pair in fit]
    cases = {row: released.rollouts["case_id"][row] for row in tokens}
    plain = options.way in (TRL, KNOWN)
    counted = sum(len(tokens[side].ids) for fit in kept[1:] for pair in fit for side in pair)
    known: dict[int, float] = {}
    if options.way != TRL:
        started = time.perf_counter()
        known = real_reference(options, tokenizer, tokens, cases)
        if options.way == REFERENCE:
            seconds = (time.perf_counter() - started) / options.runs
            # Of all batches, of which the first does not count in a step's row.
            seconds *= len(kept[1:]) / len(kept)
            mean = sum(known.values()) / len(known)
            return row(sum(map(len, kept[1:])), counted, seconds, mean)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = PairTrainer(
            model(options, tokenizer),
            tokenizer,
            Data(everything, tokens, cases, known),
            arguments=arguments(scratch, options.pairs),
            lora=LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"),
            batching=Batching() if plain else Batching(options.way, options.budget),
        )
        collator, network = trainer.data_collator, trainer.model
        assert isinstance(collator, TrajectoryCollator) and network is not None
        losses: list[float] = []
        started = 0.0
        with nullcontext() if plain else trainer.forwarding():
            for number, fit in enumerate(kept):
                if number == 1:
                    losses, started = [], time.perf_counter()
                examples = [{"chosen": one, "rejected": other} for one, other in fit]
                batch = collator.torch_call(examples)
                if plain:
                    del batch["keys"]
                    loss = DPOTrainer.compute_loss(trainer, network.train(), batch)
                else:
                    loss = trainer.compute_loss(network.train(), batch)
                loss.backward()
                losses.append(loss.item())
            seconds = time.perf_counter() - started
    return row(sum(map(len, kept[1:])), counted, seconds, sum(losses) / len(losses))


def real_reference(
    options: argparse.Namespace,
    tokenizer: Any,
    tokens: dict[int, Trajectory],
    cases: dict[int, str],
) -> dict[int, float]:
    """Compute the log-probability of each rollout, case by case, as the rule `reference` does."""
    parent = model(options, tokenizer)
    add_fused_lm_head(parent)
    found: dict[int, float] = {}
    with prefix_sharing(parent):
        for case in dict.fromkeys(cases.values()):
            of_case = {key: each for key, each in tokens.items() if cases[key] == case}
            found |= logps(parent, of_case, options.budget or 2 * MAX_LENGTH)
    return found


def log_probabilities(options: argparse.Namespace) -> dict:
    """Time the reference log-probabilities of all pairs of some cases, and average them."""
    released, tokenizer, told, rows = read(options)
    names = rows["case_id"].unique(maintain_order=True)[: options.cases]
    rows = rows.filter(rows["case_id"].is_in(names.implode()))
    tokens = trajectories(ChatEncoder(tokenizer), rows, released.rollouts, told)
    kept, _ = fitting(rows, tokens, MAX_LENGTH)
    slots = [row for pair in kept for row in pair]
    count = sum(len(tokens[row].ids) for row in slots)
    with tempfile.TemporaryDirectory() as folder:
        if options.way == TRL:
            fits = rows[
                [
                    n
                    for n, pair in enumerate(
                        zip(rows["chosen_row"], rows["rejected_row"], strict=True)
                    )
                    if pair in {*kept}
                ]
            ]
            sums, seconds = by_trl(options, tokenizer, released, told, fits, folder)
        else:
            model(options, tokenizer).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            used = released.rollouts[sorted({*slots})]
            started = time.perf_counter()
            settings = Settings(assistant_only_loss=False, max_length=MAX_LENGTH)
            table = reference(folder, used, told, lineage="x", settings=settings)
            seconds = time.perf_counter() - started
            of = dict(zip(sorted({*slots}), table["logps"], strict=True))
            sums = [of[row] for row in slots]
    return row(len(kept), count, seconds, sum(sums) / len(sums))


def by_trl(options, tokenizer, released, told, rows, folder) -> tuple[list[float], float]:
    """Compute the reference log-probabilities with TRL's own trainer; return them and seconds."""
    seconds = []

    class Timed(DPOTrainer):
        def _precompute_ref_logps(self, *args, **kwargs):
            started = time.perf_counter()
            made = super()._precompute_ref_logps(*args, **kwargs)
            seconds.append(time.perf_counter() - started)
            return made

    made = arguments(folder, options.pairs)
    made.precompute_ref_log_probs = True
    names = [name for name in rows.columns if not name.endswith("_row")]
    data = training_set(rows.select(names), released.rollouts, told, cases=144, seed=0)
    trainer = Timed(
        model=model(options, tokenizer),
        args=made,
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    found: Any = trainer.train_dataset
    return [*found["ref_chosen_logps"], *found["ref_rejected_logps"]], seconds[0]


def read(options: argparse.Namespace):
    """Read release, tokenizer, prompts, and the pairs of the training half of seed 0."""
    suite = take_suite(options.suite / "all_cases.json", options.suite / "all_toolkits.json", 144)
    released = import_published(options.release, "gpt5m")
    told = prompts(suite, suite.cases, "react")
    chosen = pairs(rollout_scores(released.labels), "safe", min_gap=2)
    rows = with_rows(chosen, released.rollouts, told, cases=144, seed=0)
    return released, text_tokenizer(options.suite), told, rows


def model(options: argparse.Namespace, tokenizer) -> Qwen3ForCausalLM:
    """Make a random model, the same in every process."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=max(2, options.hidden // 64),
        num_key_value_heads=max(1, options.hidden // 128),
        head_dim=64,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Qwen3ForCausalLM(config)


def arguments(folder: str, batch_size: int) -> DPOConfig:
    """Build the training arguments that all ways share."""
    return DPOConfig(
        output_dir=folder,
        per_device_train_batch_size=batch_size,
        max_length=None,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        remove_unused_columns=False,
    )


def row(pairs: int, tokens: int, seconds: float, result: float) -> dict:
    """Collect the results of one way, with the process's peak of memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {
        "pairs": pairs,
        "tokens": tokens,
        "seconds": seconds,
        "gigabytes": peak,
        "result": result,
    }


STEPS_OR_REFERENCE = {"steps": steps, "reference": log_probabilities}

if __name__ == "__main__":
    main()
