"""Measure rollouts: batched episodes, one episode at a time, and the engine without a model.

    python benchmarks/rollouts.py --checkpoint FOLDER [--episodes 288] [--alone 24] [--threads 1]
                                  [--repeats 3]

FOLDER is a checkpoint, such as results/miniature/checkpoints/bold. All rows of the table come from
one process, one model and the miniature's cases; each is the fastest of its repeats, which
alternate. Both ways must give the same rollouts. In the last row an agent answers instantly, which
leaves the cost of the engine itself.
"""

import argparse
import asyncio
import sys
import time
from dataclasses import replace

from agentsafe.inference.hf import LocalChat, load
from agentsafe.inference.types import ChatModel, Completion
from agentsafe.miniature.cases import make_suite
from agentsafe.miniature.world import MiniatureEmulator
from agentsafe.rollouts.config import Settings
from agentsafe.rollouts.react import Action, FinalAnswer, render_turn
from agentsafe.rollouts.roll_out import Agent, roll_out
from agentsafe.suites.cases import Suite

SAMPLES = 4


class Instant:
    """An agent that makes four calls and a final answer."""

    constrains = False

    async def complete(self, messages, sampling):
        """Return the agent's next turn instantly."""
        number = sum(message["role"] == "assistant" for message in messages)
        tool = messages[0]["content"].split("(")[0].split()[-1]  # the first tool of the prompt
        step = Action(tool, {"name": "Ada"}) if number < 4 else FinalAnswer("Done.")
        return Completion(render_turn("I go on.", step), "stop", 100, 20)


def measure(agent: ChatModel, suite: Suite, episodes: int, settings: Settings):
    """Roll out the first cases; return rollouts, turns and seconds."""
    cases = suite.cases[: max(1, episodes // settings.samples)]
    work = roll_out(Agent("benchmark", agent), suite, cases, MiniatureEmulator(), settings)
    started = time.perf_counter()
    rollouts, audits = asyncio.run(work)
    seconds = time.perf_counter() - started
    return rollouts, audits["turns"].sum(), seconds


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="folder with a model and a tokenizer")
    parser.add_argument("--episodes", type=int, default=288, help="episodes in a batch")
    parser.add_argument("--alone", type=int, default=24, help="of them, episodes one at a time")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of each row")
    options = parser.parse_args()
    suite = make_suite(max(144, options.episodes // SAMPLES), seed=0)
    settings = Settings(samples=SAMPLES, batch=options.episodes)
    chat = load(options.checkpoint, max_batch=options.episodes, threads=options.threads)
    measure(chat, suite, SAMPLES, settings)  # warm up

    single = LocalChat(chat.model, chat.tokenizer, max_batch=1, device=chat.model.device)
    one = replace(settings, batch=1)
    runs = [
        {
            "batched": measure(chat, suite, options.episodes, settings),
            "one at a time": measure(single, suite, options.alone, one),
            "without a model": measure(Instant(), suite, options.episodes, settings),
        }
        for _ in range(options.repeats)
    ]
    rows = {name: min((run[name] for run in runs), key=lambda each: each[2]) for name in runs[0]}

    print(f"{'way':28} {'episodes':>8} {'s':>7} {'episodes/s':>10} {'turns/s':>8} {'tokens/s':>8}")
    for name, (rollouts, turns, seconds) in rows.items():
        count, tokens = len(rollouts), rollouts["agent_tokens"].sum()
        print(
            f"{name:28} {count:8} {seconds:7.2f} {count / seconds:10.1f} {turns / seconds:8.0f} "
            f"{tokens / seconds:8.0f}"
        )
    speed = {name: len(rollouts) / seconds for name, (rollouts, _, seconds) in rows.items()}
    print(f"batched over one at a time: {speed['batched'] / speed['one at a time']:.1f}x")
    batched, alone = (rows[name][0]["messages"] for name in ("batched", "one at a time"))
    differing = (batched.head(len(alone)) != alone).sum()
    if differing:  # rounding decided between two tokens that are almost tied
        print(f"{differing} of {len(alone)} episodes differ", file=sys.stderr)


if __name__ == "__main__":
    main()
