"""Measure rollouts and labels where a language model is agent, emulator and judge.

    python benchmarks/toolemu.py --suite FOLDER [--cases 12] [--threads 2] [--repeats 2]

FOLDER has ToolEmu's all_cases.json and all_toolkits.json. One small random checkpoint has all
three roles, with a tokenizer trained on the suite's text. Its answers are noise, so they are
generated, which costs their time, and then replaced by scripted well-formed ones. All rows come
from one process and the same episodes; the fastest of the repeats counts. "One at a time" is our
backend with a batch of one, which still reuses earlier turns; "plain generate" is transformers'
own `generate`.

The second table shows the cost of the engine itself: agent, emulator and judge answer instantly.
`memory` is the peak of Python's allocations during the episodes; the last column is the size of the
finished table.
"""

import argparse
import asyncio
import json
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from agentsafe.inference.hf import LocalChat
from agentsafe.inference.types import Completion
from agentsafe.labels.config import JudgeSettings
from agentsafe.labels.judges.llm import LLMJudge
from agentsafe.labels.label import label_rollouts
from agentsafe.rollouts.config import EmulatorSettings, Settings
from agentsafe.rollouts.emulators.llm import LLMEmulator
from agentsafe.rollouts.react import Action, FinalAnswer, render_turn
from agentsafe.rollouts.roll_out import Agent, roll_out
from agentsafe.suites.cases import Case, Suite
from agentsafe.suites.toolemu import take_suite

TURNS, TOKENS = 3, 96
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Scripted:
    """A chat model whose answers are scripted by role, after generating those of a real model."""

    constrains = True

    def __init__(self, suite: Suite, model: "LocalChat | Generate | None"):
        self.suite, self.model = suite, model
        self.calls = {case.instruction: _call(suite, case) for case in suite.cases}

    async def complete(self, messages, sampling):
        """Return the scripted answer of the agent, emulator or judge, depending on the prompt."""
        made = Completion("", "stop", 3000, TOKENS)
        if self.model is not None:
            made = await self.model.complete(messages, sampling)
        if sampling.choices:
            return replace(made, text="2")
        first = messages[0]["content"]
        if first.startswith("You emulate"):
            return replace(made, text='Thought: so.\nObservation: {"error": "NotFound: nothing"}')
        if first.startswith("You judge"):
            return replace(made, text="It went as it went.")
        said = sum(message["role"] == "assistant" for message in messages)
        call = self.calls[messages[1]["content"]]
        step = call if said < TURNS - 1 else FinalAnswer("Done.")
        return replace(made, text=render_turn("I go on.", step), stop_reason="stop")


class Generate:
    """A chat model on transformers' `generate`: one conversation at a time, nothing reused."""

    constrains = False

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer

    @torch.inference_mode()
    async def complete(self, messages, sampling):
        """Generate the model's next turn."""
        prompt = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        made = self.model.generate(
            **prompt,
            max_new_tokens=1 if sampling.choices else sampling.max_tokens,
            do_sample=sampling.temperature > 0,
            temperature=sampling.temperature or None,
            pad_token_id=self.tokenizer.eos_token_id,
        )
        before, length = prompt["input_ids"].shape[1], made.shape[1]
        return Completion("", "stop", before, length - before)


def _call(suite: Suite, case: Case) -> Action:
    """Make a valid call of the case's first tool."""
    values = {"string": "x", "integer": 1, "number": 1, "boolean": True, "array": [], "object": {}}
    tool = suite.tools_of(case)[0]
    return Action(tool.name, {p.name: values[p.type] for p in tool.parameters if p.required})


def text_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Train a tokenizer of 4,096 tokens on a suite's text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [json.dumps(json.loads(path.read_text())) for path in sorted(folder.glob("all_*.json"))]
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=TEMPLATE
    )


def checkpoint(folder: Path) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """Make a random Qwen3 of half a million parameters and its tokenizer."""
    fast = text_tokenizer(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(fast),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
        eos_token_id=fast.eos_token_id,
    )
    return Qwen3ForCausalLM(config).eval(), fast


def run(suite: Suite, chat: Scripted, cases: int, settings: Settings):
    """Roll out and label the first cases; return rollouts and the seconds of both."""
    emulator = LLMEmulator(suite, chat, settings=EmulatorSettings(max_tokens=TOKENS))
    judge = LLMJudge("judge", suite, chat, settings=JudgeSettings(max_tokens=TOKENS))
    started = time.perf_counter()
    work = roll_out(Agent("benchmark", chat), suite, suite.cases[:cases], emulator, settings)
    rollouts, _ = asyncio.run(work)
    finished = time.perf_counter()
    if settings.batch == 1:

        async def one_by_one():
            for number in range(len(rollouts)):
                await label_rollouts(judge, suite, rollouts[number : number + 1])

        asyncio.run(one_by_one())
    else:
        asyncio.run(label_rollouts(judge, suite, rollouts))
    return rollouts, finished - started, time.perf_counter() - finished


def main() -> None:
    """Measure and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", required=True, type=Path, help="folder with ToolEmu's files")
    parser.add_argument("--cases", type=int, default=12, help="cases, with four samples each")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    suite = take_suite(options.suite / "all_cases.json", options.suite / "all_toolkits.json", 144)
    model, tokenizer = checkpoint(options.suite)
    settings = Settings(
        samples=4, temperature=0.7, max_turn_tokens=TOKENS, max_agent_tokens=8000,
        max_malformed=5, batch=4 * options.cases, prompt="react",
    )  # fmt: skip
    ways: dict[str, tuple[LocalChat | Generate, Settings]] = {
        "batched": (LocalChat(model, tokenizer, max_batch=64), settings),
        "one at a time": (LocalChat(model, tokenizer, max_batch=1), replace(settings, batch=1)),
        "plain generate": (Generate(model, tokenizer), replace(settings, batch=1)),
    }
    best: dict[str, tuple] = {}
    for _ in range(options.repeats):
        for name, (chat, how) in ways.items():
            found = run(suite, Scripted(suite, chat), options.cases, how)
            if name not in best or sum(found[1:]) < sum(best[name][1:]):
                best[name] = found
    print(f"{'way':16} {'episodes':>8} {'roll s':>7} {'label s':>7} {'episodes/s':>10}")
    for name, (rollouts, rolled, labelled) in best.items():
        speed = len(rollouts) / (rolled + labelled)
        print(f"{name:16} {len(rollouts):8} {rolled:7.2f} {labelled:7.2f} {speed:10.2f}")
    seconds = {name: rolled + labelled for name, (_, rolled, labelled) in best.items()}
    for name in list(ways)[1:]:
        print(f"batched over {name}: {seconds[name] / seconds['batched']:.1f}x")
    print()
    engine(suite, settings)


def engine(suite: Suite, settings: Settings) -> None:
    """Measure the engine without a model: turns per second, and memory by number of episodes."""
    print(f"{'no model':16} {'episodes':>8} {'turns/s':>8} {'memory MB':>9} {'table MB':>8}")
    for samples in (4, 16, 64):
        how = replace(settings, samples=samples, batch=64)
        agent = Scripted(suite, None)
        emulator, cases = LLMEmulator(suite, agent), suite.cases[:36]
        started = time.process_time()
        work = roll_out(Agent("benchmark", agent), suite, cases, emulator, how)
        rollouts, audits = asyncio.run(work)
        speed = int(audits["turns"].sum()) / (time.process_time() - started)
        tracemalloc.start()
        asyncio.run(roll_out(Agent("benchmark", agent), suite, cases, emulator, how))
        peak = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        size = rollouts.estimated_size("mb")
        print(f"{'':16} {len(rollouts):8} {speed:8.0f} {peak:9.1f} {size:8.1f}")


if __name__ == "__main__":
    main()
