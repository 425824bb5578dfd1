"""Chat templates of published models, with tokenizers that know their special tokens.

TRL ships the templates of many families; those of Mistral and Llama 2 here do the same as theirs.
"""

# ruff: noqa: RUF001 - the special tokens of DeepSeek are not ASCII

import re
from pathlib import Path

from agentsafe.inference.chat_template import problems
from agentsafe.inference.stop_strings import render_prompt
from agentsafe.rollouts.react import conversation
from agentsafe.training.packing import pack
from agentsafe.training.tokenize import ChatEncoder, Played, Trajectory, trajectory
from tests.helpers.paths import ROOT
from tests.helpers.tiny_model import tiny_tokenizer

PAGE = ROOT / "docs/reference/templates.md"
USER = [{"role": "user", "content": "Find it."}]
BOTH = [{"role": "system", "content": "Tools: find"}, *USER]
ACT = "Thought: I look\nAction: find\nAction Input: {}"
TURNS = [ACT, ACT.replace("look", "look again"), "Thought: done\nFinal Answer: 3"]
EPISODE = [
    {"role": "assistant", "content": TURNS[0]},
    {"role": "observation", "content": "found 3"},
    {"role": "assistant", "content": TURNS[1]},
    {"role": "observation", "content": "found 4"},
    {"role": "assistant", "content": TURNS[2]},
]
THOUGHTS = ("so it is", "", "why not")
_HEADER = """# Chat templates

How the rollouts of published models become tokens to train on. A test makes this page and checks
every row: under the model's own chat template, each turn of the agent trains after exactly the
tokens that were served before it.

- **system**: the template takes a system message. Without one, use a prompt template whose
  `system` block is empty (`rollouts.prompt`).
- **equal**: the tokens before every trained turn are those of serving.
- **sequences**: of a rollout of three turns, and of one whose first and last turn have private
  reasoning, which is left out where the template has no place for it. More than one where the
  template renders earlier turns differently once later ones follow; the log-probability of a
  rollout is the sum over its turns.
- **work**: tokens that one forward pass of such a rollout computes, relative to its longest
  sequence. What sequences have in common is computed once.

The templates are those that TRL ships; those of Mistral and Llama 2 are written to do the same as
the published ones.

| model | system | equal | sequences | with reasoning | work |
| --- | --- | --- | ---: | ---: | ---: |
"""

_SPECIAL = re.compile(
    r"<\|[^|<>'\"{} ]{1,40}\|>|<｜[^｜]{1,40}｜>|<(?:start|end)_of_turn>|<bos>|<turn\||<\|turn>"
    r"|<turn\|>|<\|channel>|<channel\|>|\[gMASK\]|<sop>|\[/?INST\]|<[A-Z_]+_TOKEN>"
)
_OWN = {"<|im_start|>", "<|im_end|>", "<|endoftext|>"}
_BEGIN = ("<|begin_of_text|>", "<bos>", "<｜begin▁of▁sentence｜>", "<BOS_TOKEN>", "<|startoftext|>")
_END = ("<end_of_turn>", "<|eot_id|>", "<|end|>", "<｜end▁of▁sentence｜>", "<turn|>")
#: `add_generation_prompt` adds nothing, and the end of sequence follows each answer.
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + '[/INST]' }}{% elif message['role'] == 'system' %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% else %}"
    "{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
#: Every turn of the user begins a sequence, and all texts are stripped.
LLAMA_2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'system' %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% else %}"
    "{{ ' '  + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
#: The file in TRL of each model, or the template; and the options to render it with.
MODELS = {
    "Qwen2.5": ("qwen2_5", {}),
    "Qwen3, thinking": ("qwen3", {"enable_thinking": True}),
    "Qwen3, not thinking": ("qwen3", {"enable_thinking": False}),
    "Qwen3-2507": ("qwen3_instruct_2507", {}),
    "Qwen3.5, thinking": ("qwen3_5_think", {"enable_thinking": True}),
    "Qwen3.5, not thinking": ("qwen3_5_nothink", {"enable_thinking": False}),
    "Qwen3.6": ("qwen3_6", {}),
    "Llama 2": (LLAMA_2, {}),
    "Llama 3": ("llama3", {}),
    "Llama 3.1": ("llama3_1", {}),
    "Llama 3.2": ("llama3_2", {"date_string": "26 Jul 2024"}),
    "Mistral, Mixtral": (MISTRAL, {}),
    "Phi-3": ("phi3", {}),
    "Phi-3.5": ("phi3_5", {}),
    "Gemma 2": ("gemma", {}),
    "Gemma 3": ("gemma3", {}),
    "Gemma 4": ("gemma4", {}),
    "gpt-oss": ("gptoss", {}),
    "DeepSeek-V3": ("deepseekv3", {}),
    "DeepSeek-R1 distilled": ("deepseek_r1_distill", {}),
    "GLM-4.5, thinking": ("glm4moe", {"enable_thinking": True}),
    "GLM-4.5, not thinking": ("glm4moe", {"enable_thinking": False}),
    "Nemotron 3": ("nemotron_3_nano", {}),
    "Command R": ("cohere", {}),
    "LFM2": ("lfm2", {}),
}


def template_of(name: str) -> str:
    """The text of a model's chat template."""
    import trl

    file = Path(trl.__file__).parent / "chat_templates" / f"{MODELS[name][0]}.jinja"
    return file.read_text(encoding="utf-8") if file.is_file() else MODELS[name][0]


def tokenizer_of(name: str):
    """A tokenizer of bytes and of the special tokens in a model's chat template."""
    from tokenizers import AddedToken

    template = template_of(name)
    tokenizer = tiny_tokenizer(template)
    found = {*_SPECIAL.findall(template)} - _OWN | {"<s>", "</s>"}
    tokenizer.add_tokens([AddedToken(token, special=True) for token in sorted(found)])
    tokenizer.bos_token = next((token for token in _BEGIN if token in found), "<s>")
    ends = [token for token in _END if token in found]
    if ends or "eos_token" in template:
        tokenizer.eos_token = ends[0] if ends else "</s>"
    return tokenizer


def table() -> str:
    """The page that says how each model's rollouts become tokens, as Markdown."""
    rows = [_HEADER]
    for name, (_, options) in MODELS.items():
        tokenizer = tokenizer_of(name)
        opening = opening_of(tokenizer, options)
        encoder = ChatEncoder(tokenizer, options)
        plain, thinking = (
            trajectory(encoder, opening, Played(EPISODE, thoughts)) for thoughts in ((), THOUGHTS)
        )
        equal = contexts(plain) == served(tokenizer, opening, options)
        cells = (
            name,
            "yes" if opening == BOTH else "as part of the user's message",
            "yes" if equal else "no",
            str(len(plain.starts)),
            str(len(thinking.starts)),
            f"{pack([plain], [[0]]).tokens / plain.longest:.2f}",
        )
        rows.append(f"| {' | '.join(cells)} |\n")
    return "".join(rows)


def opening_of(tokenizer, options) -> list[dict[str, str]]:
    """A prompt with a system message, if the template takes one."""
    return USER if problems(tokenizer, BOTH, options) else BOTH


def contexts(made: Trajectory) -> list[list[int]]:
    """The tokens before each turn that counts."""
    found = []
    for part in made.sequences:
        ids, mask = made.ids[part], made.mask[part]
        found += [ids[:n] for n in range(1, len(ids)) if mask[n] and not mask[n - 1]]
    return found


def served(tokenizer, opening, options) -> list[list[int]]:
    """The prompts of each turn, as any backend renders them."""
    conversed = opening + conversation(EPISODE)
    return [
        tokenizer(render_prompt(tokenizer, conversed[:n], options), add_special_tokens=False)[
            "input_ids"
        ]
        for n in range(len(opening), len(conversed), 2)
    ]


if __name__ == "__main__":
    PAGE.write_text(table(), encoding="utf-8")
