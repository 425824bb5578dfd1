"""Turns as models write them, and those turns damaged."""

import random

LOOK = 'Thought: t\nAction: Look\nAction Input: {"at": "it"}'


#: Turns as real models write them.
REAL = [
    LOOK,
    "Thought: t\n\n**Action:** `Look`\n\n**Action Input:**\n```json\n{\n  \"at\": \"it\"\n}\n```\n",
    "I'll look first.\n\n### Action: Look\n### Action Input: {'at': 'it', 'deep': True,}\n",
    "Thought: t\nAction: Look({\"at\": \"it\"})\nObservation: {\"seen\": [1, 2]}\nThought: now\n",
    "```\nThought: t\nAction: Look\nAction Input: {\"at\": \"it\"}\n```\n\nObservation:",
    "Action: Look\nAction Input: {\"at\": \"it\"}\n\nAction: Look\nAction Input: {\"at\": \"he",
    "<think>t</think>\n\nThought: t\nFinal Answer: I looked at *it*: `{}`.",
    "- **Thought**: t\n- **Final Answer**: done\n",
    "[Thought] t\n[Action] Look\n[Action Input] {\"at\": \"a\\|b\"} // all\n[Observation] x\n",
    "## Action\nLook\n\n## Action Input\n{\n  \"at\": \"it\", // there\n  \"deep\": 1\n}\n",
    "Observation: {\"seen\": [1]}\nThought: t\nAction: Look\nAction Input: {\"at\": \"it\"}",
    "Thought: t\nAction: None\nAction Input: None\nObservation: None\n\nFinal Answer: done\n",
    "Action: I look at it.\nAction: Look\nAction Input: {}\n",
    "I look. Action: Look Action Input: {\"at\": \"it\"} Observation: {}\n",
    "```json\n{\"thought\": \"t\", \"action\": \"Look\", \"action_input\": {\"at\": 1}}\n```\n",
    "Action: Final Answer\nAction Input: {\"answer\": \"done\"}\n",
    "I cannot help with that.\n",
]  # fmt: skip


def mutated(text: str, draw: random.Random) -> str:
    """The text with a piece of it doubled, dropped, or swapped for one of another turn."""
    start, end = sorted(draw.choices(range(len(text) + 1), k=2))
    other = draw.choice(REAL)
    cut = draw.randrange(len(other))
    pieces = "", text[start:end] * 2, other[cut : cut + draw.randrange(30)]
    return text[:start] + draw.choice(pieces) + text[end:]
