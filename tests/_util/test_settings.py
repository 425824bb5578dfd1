"""Cache keys hold the settings that results depend on, and no others."""

from agentsafe._util.settings import cache_key
from agentsafe.experiment.check import check
from agentsafe.experiment.config import Emulator, Judge, Model, Preferences, Rollouts, Scores
from agentsafe.training.config import Section, Settings


def left_out(kind, row=False):
    fields = kind.__dataclass_fields__
    return {*fields} - {*cache_key(kind, dict.fromkeys(fields), row=row)}


def test_a_key_has_the_values_of_its_fields_and_no_other_keys():
    section = check({"run": "x"})["scores"] | {"cases": 3}
    assert cache_key(Scores, section) == {
        "resamples": 10_000,
        "seed": 0,
        "resample": "cases",
        "confidence": 0.95,
    }


def test_results_do_not_depend_on_how_much_is_done_at_once():
    assert left_out(Rollouts) == {"batch", "max_seconds", "max_refused"}
    assert left_out(Preferences) == {"objectives", "donors"}
    assert left_out(Judge) == {"max_refused"}
    assert left_out(Emulator) == set()
    patience = {"timeout", "retries", "api_key_env"}
    assert left_out(Model) == {
        *("concurrency", "memory_fraction", "lora", "price", "max_tokens_field"),
        *patience,
    }
    conduct = {"batch_tokens", "max_dropped", "save_steps", "save_minutes", "report_to"}
    assert left_out(Settings) == conduct
    assert left_out(Section) - conduct == {
        *("sources", "judged_by", "recipes", "betas", "seeds", "objectives"),
        *("gpus", "distributed"),
    }


def test_a_row_does_not_depend_on_how_many_there_are():
    table = {"samples", "prompt", "shards"}
    assert left_out(Rollouts, row=True) == left_out(Rollouts) | table
    table = {"model", "labels", "metrics", "replicates", "prompt", "max_tokens"}
    assert left_out(Judge, row=True) == left_out(Judge) | table
    assert left_out(Emulator, row=True) == {"model", "prompt"}
