"""Chat templates of published models, with tokenizers that know their special tokens.

TRL ships the templates of many families; others are written here to do the same as the published
ones do with conversations of a system, a user and an assistant.
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
- **TRL's**: whether the training template that TRL ships for this one makes the same tokens of
  these rollouts. Where it does, it makes as many sequences and saves nothing. Where it makes fewer,
  earlier turns have thoughts in them that were not there when the model played. So runs use the
  model's own template only. To train on TRL's, serve with it too: save it as `chat_template.jinja`
  in the checkpoint's folder.

The templates are those that TRL ships. Those of models with a star are written to do the same as
the published ones with such conversations.

| model | system | equal | sequences | with reasoning | work | TRL's |
| --- | --- | --- | ---: | ---: | ---: | --- |
"""

_SPECIAL = re.compile(
    r"<\|[^|<>'\"{} ]{1,40}\|>|<｜[^｜]{1,40}｜>|<(?:start|end)_of_turn>|<bos>|<\|turn>"
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


def _like(turn: str, opening: str, begin: str = "") -> str:
    """Write a template whose turns all look alike: that of ROLE with a TEXT."""
    shown = turn.replace("ROLE", "' + message['role'] + '").replace(
        "TEXT", "' + message['content'] + '"
    )
    return (
        f"{{{{ '{begin}' }}}}{{% for message in messages %}}{{{{ '{shown}' }}}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ '{opening}' }}}}{{% endif %}}"
    )


CHATML = _like("<|im_start|>ROLE\\nTEXT<|im_end|>\\n", "<|im_start|>assistant\\n")
#: A system message in brackets of its own, and an answer that follows the user's at once.
MISTRAL_SMALL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST]' + message['content'] + '[/INST]' }}{% elif message['role'] == 'system' %}"
    "{{ '[SYSTEM_PROMPT]' + message['content'] + '[/SYSTEM_PROMPT]' }}{% else %}"
    "{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
#: Only an answer has an end, and what was asked has none.
OLMO = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '<|assistant|>\\n' + message['content'] + eos_token }}"
    "{% if not loop.last %}{{ '\\n' }}{% endif %}{% else %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '\\n' }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}{% endfor %}"
)
#: The end of sequence follows where no answer is asked for.
PHI_4_MINI = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{{ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)
#: Thoughts are written by the model alone; without thinking, each turn has an empty one.
SMOLLM3 = (
    "{% set thought = '' if enable_thinking else '<think>\\n\\n</think>\\n' %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{{ (thought if message['role'] == 'assistant' else '') + message['content'] }}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' + thought }}{% endif %}"
)
#: The opening begins a thought or ends it; earlier turns have none.
DEEPSEEK_V3_1 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '<｜User｜>' + message['content'] }}{% elif message['role'] == 'system' %}"
    "{{ message['content'] }}{% else %}"
    "{{ '<｜Assistant｜></think>' + message['content'].split('</think>')[-1] }}"
    "{{ '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<｜Assistant｜>' + ('<think>' if enable_thinking else '</think>') }}{% endif %}"
)
#: The opening begins a thought, and earlier turns have none.
QWQ = CHATML.replace("assistant\\n", "assistant\\n<think>\\n").replace(
    "message['content']", "message['content'].split('</think>')[-1]"
)
#: Earlier turns have an empty thought, which is not in the opening.
KIMI_THINKING = (
    "{% for message in messages %}{% set short = message['role'] %}"
    "{{ '<|im_' + short + '|>' + short + '<|im_middle|>' }}"
    "{{ ('<think></think>' if short == 'assistant' else '') + message['content'] + '<|im_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_assistant|>assistant<|im_middle|>' }}{% endif %}"
)
#: The file in TRL of each model, or the template; and the options to render it with.
MODELS = {
    "Qwen2.5": ("qwen2_5", {}),
    "Qwen3, thinking": ("qwen3", {"enable_thinking": True}),
    "Qwen3, not thinking": ("qwen3", {"enable_thinking": False}),
    "QwQ": (QWQ, {}),
    "Qwen3-2507": ("qwen3_instruct_2507", {}),
    "Qwen3.5, thinking": ("qwen3_5_think", {"enable_thinking": True}),
    "Qwen3.5, not thinking": ("qwen3_5_nothink", {"enable_thinking": False}),
    "Qwen3.6": ("qwen3_6", {}),
    "Qwen3.8, thinking": ("qwen3_8", {"enable_thinking": True}),
    "Qwen2.5-VL": ("qwen2_5_vl", {}),
    "Qwen3-VL": ("qwen3_vl", {}),
    "Llama 2": (LLAMA_2, {}),
    "Llama 3": ("llama3", {}),
    "Llama 3.1": ("llama3_1", {}),
    "Llama 3.2": ("llama3_2", {"date_string": "26 Jul 2024"}),
    "Llama 4": (
        _like(
            "<|header_start|>ROLE<|header_end|>\\n\\nTEXT<|eot|>",
            "<|header_start|>assistant<|header_end|>\\n\\n",
            "<|begin_of_text|>",
        ),
        {},
    ),
    "Mistral, Mixtral": (MISTRAL, {}),
    "Mistral Small 3": (MISTRAL_SMALL, {}),
    "SmolLM2, Yi, InternLM2, Hermes (ChatML)": (CHATML, {}),
    "SmolLM3, thinking": (SMOLLM3, {"enable_thinking": True}),
    "SmolLM3, not thinking": (SMOLLM3, {"enable_thinking": False}),
    "Zephyr": (_like("<|ROLE|>\\nTEXT</s>\\n", "<|assistant|>\\n"), {}),
    "Granite 3": (
        _like(
            "<|start_of_role|>ROLE<|end_of_role|>TEXT<|end_of_text|>\\n",
            "<|start_of_role|>assistant<|end_of_role|>",
        ),
        {},
    ),
    "OLMo 2, Falcon 3": (OLMO, {}),
    "Phi-3": ("phi3", {}),
    "Phi-3.5": ("phi3_5", {}),
    "Phi-4-mini": (PHI_4_MINI, {}),
    "Gemma 2": ("gemma", {}),
    "Gemma 3": ("gemma3", {}),
    "Gemma 4": ("gemma4", {}),
    "Gemma 4, newest": ("gemma4_v5", {}),
    "gpt-oss": ("gptoss", {}),
    "DeepSeek-V3": ("deepseekv3", {}),
    "DeepSeek-V3.1, thinking": (DEEPSEEK_V3_1, {"enable_thinking": True}),
    "DeepSeek-V3.1, not thinking": (DEEPSEEK_V3_1, {"enable_thinking": False}),
    "DeepSeek-R1 distilled": ("deepseek_r1_distill", {}),
    "GLM-4.5, thinking": ("glm4moe", {"enable_thinking": True}),
    "GLM-4.5, not thinking": ("glm4moe", {"enable_thinking": False}),
    "Nemotron 3": ("nemotron_3_nano", {}),
    "Command R": ("cohere", {}),
    "Cohere 2": ("cohere2", {}),
    "Kimi-K2": (KIMI_THINKING.replace("<think></think>", ""), {}),
    "Kimi-K2-Thinking": (KIMI_THINKING, {}),
    "LFM2": ("lfm2", {}),
    "LFM2.5": ("lfm2_2_5_v2", {}),
}


def shipped(name: str, kind: str = "") -> Path | None:
    """The file of a model's chat template in TRL, or of the `_training` kind; None without one."""
    import trl

    file = Path(trl.__file__).parent / "chat_templates" / f"{MODELS[name][0]}{kind}.jinja"
    return file if len(MODELS[name][0]) < 40 and file.is_file() else None


def template_of(name: str) -> str:
    """The text of a model's chat template."""
    file = shipped(name)
    return file.read_text(encoding="utf-8") if file else MODELS[name][0]


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
            name + ("" if shipped(name) else " *"),
            "yes" if opening == BOTH else "as part of the user's message",
            "yes" if equal else "no",
            str(len(plain.starts)),
            str(len(thinking.starts)),
            f"{pack([plain], [[0]]).tokens / plain.longest:.2f}",
            same_with_trls(name),
        )
        rows.append(f"| {' | '.join(cells)} |\n")
    return "".join(rows)


def same_with_trls(name: str) -> str:
    """Tell whether TRL's training template makes the same tokens of a rollout."""
    file = shipped(name, "_training")
    if file is None:
        return "none"
    tokenizer, options = tokenizer_of(name), MODELS[name][1]
    opening, encoder = opening_of(tokenizer, options), ChatEncoder(tokenizer, options)
    own, theirs = [], []
    for made in (own, theirs):
        made += [trajectory(encoder, opening, Played(EPISODE, each)) for each in ((), THOUGHTS)]
        tokenizer.chat_template = file.read_text(encoding="utf-8")
    if own == theirs:
        return "same tokens"
    most = max(len(each.starts) for each in theirs)
    return "other tokens" + (", one sequence" if most == 1 else "")


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
