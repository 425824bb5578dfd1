"""What rollouts cost: episodes together against one at a time, and the engine without a model.

    python benchmarks/rollouts.py --checkpoint FOLDER [--episodes 288] [--alone 24] [--threads 1]
                                  [--repeats 3]

FOLDER is a checkpoint, such as results/miniature/checkpoints/bold. All rows of the table are of
one process, one model and the miniature's cases, the quickest of the repeats, which take turns;
both ways of playing must say the same. The last row is an agent that answers at once, so that what
is left is the engine's own.
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
from agentsafe.rollouts.episode import Settings
from agentsafe.rollouts.react import Action, FinalAnswer, write
from agentsafe.rollouts.roll_out import roll_out
from agentsafe.suites.cases import Suite

SAMPLES = 4


class Instant:
    """Makes four calls and is done."""

    async def complete(self, messages, sampling):
        """The next of its turns, without any work."""
        number = sum(message["role"] == "assistant" for message in messages)
        tool = messages[0]["content"].split("(")[0].split()[-1]  # the first that it is shown
        step = Action(tool, {"name": "Ada"}) if number < 4 else FinalAnswer("Done.")
        return Completion(write("I go on.", step), "stop", 100, 20)


def play(agent: ChatModel, suite: Suite, episodes: int, settings: Settings):
    """Play the first cases; returns (rollouts, seconds)."""
    cases = suite.cases[: max(1, episodes // settings.samples)]
    work = roll_out("benchmark", suite, cases, agent, MiniatureEmulator(), settings)
    started = time.perf_counter()
    rollouts, audits = asyncio.run(work)
    seconds = time.perf_counter() - started
    return rollouts, audits["turns"].sum(), seconds


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="folder with a model and a tokenizer")
    parser.add_argument("--episodes", type=int, default=288, help="played together")
    parser.add_argument("--alone", type=int, default=24, help="of them, played one at a time")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--repeats", type=int, default=3, help="of everything")
    options = parser.parse_args()
    suite = make_suite(max(144, options.episodes // SAMPLES), seed=0)
    settings = Settings(samples=SAMPLES, batch=options.episodes)
    chat = load(options.checkpoint, max_batch=options.episodes, threads=options.threads)
    play(chat, suite, SAMPLES, settings)  # what the first call of all costs is no episode's

    single = LocalChat(chat.model, chat.tokenizer, max_batch=1, device=chat.model.device)
    ways = {
        "together": (chat, suite, options.episodes, settings),
        "one at a time": (single, suite, options.alone, replace(settings, batch=1)),
        "without a model": (Instant(), suite, options.episodes, settings),
    }
    runs = [{name: play(*way) for name, way in ways.items()} for _ in range(options.repeats)]
    rows = {name: min((run[name] for run in runs), key=lambda each: each[2]) for name in ways}

    print(f"{'way':28} {'episodes':>8} {'s':>7} {'episodes/s':>10} {'turns/s':>8} {'tokens/s':>8}")
    for name, (rollouts, turns, seconds) in rows.items():
        count, tokens = len(rollouts), rollouts["agent_tokens"].sum()
        print(
            f"{name:28} {count:8} {seconds:7.2f} {count / seconds:10.1f} {turns / seconds:8.0f} "
            f"{tokens / seconds:8.0f}"
        )
    speed = {name: len(rollouts) / seconds for name, (rollouts, _, seconds) in rows.items()}
    print(f"together over one at a time: {speed['together'] / speed['one at a time']:.1f}x")
    both = [
        rows[name][0].head(options.alone).drop("seconds") for name in ("together", "one at a time")
    ]
    differing = (both[0]["messages"] != both[1]["messages"]).sum()
    if differing:  # two tokens tied but for rounding
        print(f"{differing} of {len(both[1])} episodes differ", file=sys.stderr)


if __name__ == "__main__":
    main()
