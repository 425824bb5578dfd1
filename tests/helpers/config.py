"""A config of local models and a judge on a server."""

from agentsafe.experiment.check import check


def llms(**changes) -> dict:
    """Two local models that act, one of which emulates too, and a judge on a server."""
    asked = {
        "run": "x",
        "suite": "toolemu",
        "models": {
            "small": {"model": "a/small"},
            "large": {"model": "a/large", "thinking": False},
            "judge": {"model": "judge", "backend": "openai"},
        },
        "sources": ["small", "large"],
        "emulator": {"model": "large"},
        "judges": {"one": {"model": "judge"}, "two": {"model": "small"}},
        "training": {"sources": ["small"], "recipes": [["safe"]], "seeds": [0]},
        "rollouts": {},
    }
    for section, change in changes.items():
        asked[section] = asked.get(section, {}) | change if isinstance(change, dict) else change
    return check(asked)
