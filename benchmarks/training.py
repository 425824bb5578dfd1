"""What a DPO step costs, with what its pairs share put through the model once or each time.

    python benchmarks/training.py --release FOLDER --suite FOLDER [--pairs 8] [--steps 2]
                                  [--hidden 128] [--layers 2] [--threads 2]

FOLDERs: the paper's release, and ToolEmu's two files. The pairs are the release's `safe` ones by
gpt-5-mini, with the agent's full prompt before them, at their real lengths up to 8,192 tokens. The
model is a random Qwen3 with a LoRA adapter, whose tokenizer is made of the suite's text. All rows
are of one process and the same pairs, in batches of one case; tokens are those of the pairs, prompt
and all, however few of them went through the model. The first step of each way does not count.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import Qwen3Config, Qwen3ForCausalLM
from trl import DPOConfig

from agentsafe.preferences import pairs, rollout_scores, with_rows
from agentsafe.published import import_set
from agentsafe.react import prompts
from agentsafe.sharing import BATCHING
from agentsafe.suites import take
from agentsafe.trainer import TrajectoryTrainer
from agentsafe.trajectories import fitting, trajectories
from benchmarks.toolemu import text_tokenizer

MAX_LENGTH = 8192


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--release", required=True, type=Path)
    parser.add_argument("--suite", required=True, type=Path)
    parser.add_argument("--pairs", type=int, default=8, help="of a batch, all of one case")
    parser.add_argument("--steps", type=int, default=2, help="counted; each a batch of its own")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    suite = take(options.suite / "all_cases.json", options.suite / "all_toolkits.json", 144)
    released = import_set(options.release, "gpt5m")
    tokenizer = text_tokenizer(options.suite)
    told = prompts(suite, suite.cases, "react")
    chosen = pairs(rollout_scores(released.labels), "safe", min_gap=2)
    rows = with_rows(chosen, released.rollouts, told, cases=144, seed=0)
    batches = [part for _, part in rows.group_by("case_id", maintain_order=True)]
    batches = [part.head(options.pairs) for part in batches if len(part) >= options.pairs]
    batches = batches[: options.steps + 1]
    tokens, kept = {}, []
    for part in batches:
        found = trajectories(tokenizer, part, released.rollouts, told)
        fit, _ = fitting(part, found, MAX_LENGTH)
        tokens |= found
        kept.append(fit)
    of_pairs = sum(len(tokens[row].ids) for fit in kept[1:] for pair in fit for row in pair)
    print(
        f"{'way':8} {'pairs':>6} {'s':>7} {'pair tokens/s':>14} {'against pairs':>14} {'loss':>9}"
    )
    seconds = {}
    for way in BATCHING:
        seconds[way], loss = steps(way, options, tokenizer, tokens, kept)
        print(
            f"{way:8} {sum(map(len, kept[1:])):6} {seconds[way]:7.1f} "
            f"{of_pairs / seconds[way]:14.0f} {seconds['pairs'] / seconds[way]:13.1f}x {loss:9.6f}"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"peak of the process: {peak:.1f} GB")


def steps(way: str, options, tokenizer, tokens, kept) -> tuple[float, float]:
    """Seconds of the counted steps, forward and backward, and the mean of their losses."""
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
    with tempfile.TemporaryDirectory() as scratch:
        arguments = DPOConfig(
            output_dir=scratch,
            per_device_train_batch_size=options.pairs,
            max_length=None,
            use_cpu=True,
            bf16=False,
            report_to="none",
            remove_unused_columns=False,
        )
        everything = [pair for fit in kept for pair in fit]
        trainer = TrajectoryTrainer(
            Qwen3ForCausalLM(config),
            tokenizer,
            everything,
            {row: tokens[row] for pair in everything for row in pair},
            arguments=arguments,
            lora=LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"),
            batching=way,
            cases=["" for _ in everything],
        )
        losses, started = [], 0.0
        for number, fit in enumerate(kept):
            if number == 1:
                losses, started = [], time.perf_counter()
            examples = [{"chosen": one, "rejected": other} for one, other in fit]
            batch = trainer.data_collator.torch_call(examples)
            loss = trainer.compute_loss(trainer.model.train(), batch)
            loss.backward()
            losses.append(loss.item())
        return time.perf_counter() - started, sum(losses) / len(losses)


if __name__ == "__main__":
    main()
