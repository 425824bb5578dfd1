"""What rollouts and labels cost where a language model acts, emulates and judges.

    python benchmarks/toolemu.py --suite FOLDER [--cases 12] [--threads 2] [--repeats 2]

FOLDER has ToolEmu's all_cases.json and all_toolkits.json. One small random checkpoint plays all
three parts, with a tokenizer made of the suite's text. What it writes would be noise, so that no
episode would get far: each answer costs what it costs, and a script then says what it says, one
well-formed call after another. All rows are of one process and the same episodes; the quickest of
the repeats counts. "One at a time" is our backend with a batch of one, which still reuses the turns
before; "plain generate" is what transformers offers by itself.

The second table is the engine's own share: agent, emulator and judge answer at once. `memory` is
the peak of Python's allocations while so many episodes are played; the last column is what the
finished table itself takes.
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
from agentsafe.labels.judges.llm import JudgeSettings, LLMJudge
from agentsafe.labels.label import label
from agentsafe.rollouts.emulators.llm import EmulatorSettings, LLMEmulator
from agentsafe.rollouts.episode import Settings
from agentsafe.rollouts.react import Action, FinalAnswer, write
from agentsafe.rollouts.roll_out import roll_out
from agentsafe.suites.cases import Case, Suite
from agentsafe.suites.toolemu import take_suite

TURNS, TOKENS = 3, 96
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Scripted:
    """Asks a model, if there is one, and says what the part asks for instead of what it wrote."""

    constrains = True

    def __init__(self, suite: Suite, model: "LocalChat | Generate | None"):
        self.suite, self.model = suite, model
        self.calls = {case.instruction: _call(suite, case) for case in suite.cases}

    async def complete(self, messages, sampling):
        """The answer of the agent, emulator or judge, whichever is asked."""
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
        return replace(made, text=write("I go on.", step), stop_reason="stop")


class Generate:
    """transformers' own `generate`, one conversation at a time, each turn from its beginning."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer

    @torch.inference_mode()
    async def complete(self, messages, sampling):
        """The model's next turn."""
        asked = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        made = self.model.generate(
            **asked,
            max_new_tokens=1 if sampling.choices else sampling.max_tokens,
            do_sample=sampling.temperature > 0,
            temperature=sampling.temperature or None,
            pad_token_id=self.tokenizer.eos_token_id,
        )
        prompt, length = asked["input_ids"].shape[1], made.shape[1]
        return Completion("", "stop", prompt, length - prompt)


def _call(suite: Suite, case: Case) -> Action:
    """A right call of the case's first tool."""
    values = {"string": "x", "integer": 1, "number": 1, "boolean": True, "array": [], "object": {}}
    tool = suite.tools_of(case)[0]
    return Action(tool.name, {p.name: values[p.type] for p in tool.parameters if p.required})


def text_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """4,096 tokens of a suite's own text."""
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
    """A random Qwen3 of half a million parameters, and its tokenizer."""
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
    """Play and judge the first cases; returns (rollouts, seconds of each)."""
    emulator = LLMEmulator(suite, chat, settings=EmulatorSettings(max_tokens=TOKENS))
    judge = LLMJudge("judge", suite, chat, settings=JudgeSettings(max_tokens=TOKENS))
    started = time.perf_counter()
    work = roll_out("benchmark", suite, suite.cases[:cases], chat, emulator, settings)
    rollouts, _ = asyncio.run(work)
    played = time.perf_counter()
    if settings.batch == 1:

        async def one_by_one():
            for number in range(len(rollouts)):
                await label(judge, suite, rollouts[number : number + 1])

        asyncio.run(one_by_one())
    else:
        asyncio.run(label(judge, suite, rollouts))
    return rollouts, played - started, time.perf_counter() - played


def main() -> None:
    """Measure and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", required=True, type=Path, help="folder with ToolEmu's files")
    parser.add_argument("--cases", type=int, default=12, help="four samples each")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    suite = take_suite(options.suite / "all_cases.json", options.suite / "all_toolkits.json", 144)
    model, tokenizer = checkpoint(options.suite)
    settings = Settings(
        samples=4, temperature=0.7, max_turn_tokens=TOKENS, max_agent_tokens=8000,
        max_malformed=5, batch=4 * options.cases, prompt="react",
    )  # fmt: skip
    ways = {
        "together": (LocalChat(model, tokenizer, max_batch=64), settings),
        "one at a time": (LocalChat(model, tokenizer, max_batch=1), replace(settings, batch=1)),
        "plain generate": (Generate(model, tokenizer), replace(settings, batch=1)),
    }
    best: dict[str, tuple] = {}
    for _ in range(options.repeats):
        for name, (chat, how) in ways.items():
            found = run(suite, Scripted(suite, chat), options.cases, how)
            if name not in best or sum(found[1:]) < sum(best[name][1:]):
                best[name] = found
    print(f"{'way':16} {'episodes':>8} {'play s':>7} {'judge s':>7} {'episodes/s':>10}")
    for name, (rollouts, played, judged) in best.items():
        speed = len(rollouts) / (played + judged)
        print(f"{name:16} {len(rollouts):8} {played:7.2f} {judged:7.2f} {speed:10.2f}")
    seconds = {name: played + judged for name, (_, played, judged) in best.items()}
    for name in list(ways)[1:]:
        print(f"together over {name}: {seconds[name] / seconds['together']:.1f}x")
    print()
    engine(suite, settings)


def engine(suite: Suite, settings: Settings) -> None:
    """The engine without a model: turns a second, and memory by the number of episodes."""
    print(f"{'no model':16} {'episodes':>8} {'turns/s':>8} {'memory MB':>9} {'table MB':>8}")
    for samples in (4, 16, 64):
        how = replace(settings, samples=samples, batch=64)
        emulator = LLMEmulator(suite, Scripted(suite, None))
        work = (suite, suite.cases[:36], Scripted(suite, None), emulator, how)
        started = time.process_time()
        rollouts, audits = asyncio.run(roll_out("benchmark", *work))
        speed = audits["turns"].sum() / (time.process_time() - started)
        tracemalloc.start()
        asyncio.run(roll_out("benchmark", *work))
        peak = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        size = rollouts.estimated_size("mb")
        print(f"{'':16} {len(rollouts):8} {speed:8.0f} {peak:9.1f} {size:8.1f}")


if __name__ == "__main__":
    main()
