"""Keys of a config that contradict each other are one line, which names both and the fix."""

from datetime import date

import pytest

from agentsafe.errors import UserError
from agentsafe.experiment.check import check
from agentsafe.experiment.validate import check_experiment, check_files
from tests.helpers.config import llms

OWN_SERVER = {"model": "a/small", "backend": "openai", "base_url_env": "SMALL_URL"}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"training": {"sources": ["bald"]}},
            "config: 'training.sources' holds 'bald', which is not in 'miniature.sources': "
            "did you mean 'bold'?",
        ),
        ({"training": {"sources": ["qwen"]}}, "those are bold, timid, weak"),
        (
            {"miniature": {"cases": 24}, "rollouts": {"shards": 13}},
            "config: 'rollouts.shards' is 13, but a trained checkpoint has only 12 test cases",
        ),
        (
            {"preferences": {"consistency": "exact"}},
            "config: 'preferences.consistency' is 'exact', but 'judges.rules.replicates' is 1, so "
            "there is nothing to compare: write none, or more replicates",
        ),
        (
            {"training": {"label_smoothing": 0.1}},
            "'training.label_smoothing' is 0.1 with the loss sigmoid: only the",
        ),
        (
            {"training": {"loss": "robust"}},
            "with the loss robust: only the loss robust uses it, and needs",
        ),
        (
            {"training": {"recipes": [["safe", {"objective": "help", "loss": "robust"}]]}},
            "is 0 with the loss robust, sigmoid: only the loss robust uses it, and needs",
        ),
        (
            {"training": {"loss": "robust", "label_smoothing": 0.1, "recipes": [["sft"]]}},
            "'training.label_smoothing' is 0.1 with the loss robust: only the loss robust uses it",
        ),
        (
            {"training": {"recipes": [["safe"], [{"objective": "sft", "beta": 0.1}]]}},
            "config: 'training.recipes[1][0].beta' is 0.1, but sft imitates rollouts, which have "
            "no beta of pairs: leave it out",
        ),
        (
            {"training": {"objectives": {"sft": {"loss": "ipo"}}}},
            "config: 'training.objectives.sft.loss' is ipo, but sft imitates rollouts, which have",
        ),
        (
            {
                "training": {
                    "recipes": [[{"objective": "help", "max_steps": 5, "num_train_epochs": 1}]]
                }
            },
            "config: 'training.recipes[0][0]' has num_train_epochs and max_steps, which both say",
        ),
        (
            {"training": {"recipes": [["safe", "help"] * 8]}},
            "makes checkpoints whose names are too long for a file, 264 characters where 220 fit",
        ),
        (
            {"judges": {"e2": {}}, "training": {"recipes": [["sft", "safe"]]}},
            "config: 'judges.e2' would read as a setting in the name of an sft checkpoint: rename",
        ),
        ({"preferences": {"consistency": "majority"}}, "is 'majority', but"),
        ({"preferences": {"consistency": "all_but_one"}}, "is 'all_but_one', but"),
        (
            {"sources": ["bald"]},
            "config: 'sources' holds 'bald', which is not in 'models', 'miniature.sources' or "
            "'miniature.warm_ups': did you mean 'bold'?",
        ),
        (
            {"miniature": {"warm_ups": {"calm": {"model": "smol"}}}},
            "config: 'miniature.warm_ups.calm.model' holds 'smol', which is not in 'models'",
        ),
        (
            {
                "models": {"m": {"model": "a/m"}},
                "miniature": {"warm_ups": {"bold": {"model": "m"}}},
            },
            "config: 'bold' is in 'miniature.sources' and in 'miniature.warm_ups.bold': rename one",
        ),
        (
            {
                "models": {"m": {"model": "m", "backend": "openai"}},
                "miniature": {"warm_ups": {"calm": {"model": "m"}}},
            },
            "config: 'miniature.warm_ups.calm.model' is 'm', whose weights are on a server",
        ),
        (
            {"models": {"m": {"model": "a/m"}}, "sources": ["m"], "suite": "toolemu"}
            | {"sources": ["bold"], "emulator": {"model": "m"}, "judges": {"j": {"model": "m"}}},
            "config: 'sources' holds 'bold', a checkpoint of the miniature, which only knows the",
        ),
        (
            {"models": {"bold": {"model": "x"}}},
            "config: 'bold' is in 'models' and in 'miniature.sources': rename one",
        ),
        ({"judges": {"q": {"model": "big"}}}, "'judges.q.model' holds 'big', which is not in"),
        ({"emulator": {"model": "big"}}, "'emulator.model' holds 'big', which is not in 'models':"),
        ({"judges": {"rules": {"mode": "logits"}}}, "'judges.rules.mode' is logits, which needs"),
        (
            {"judges": {"rules": {"metrics": ["safety"]}}},
            "config: 'judges.rules.metrics' lacks helpfulness, which pairs and points need",
        ),
        (
            {"judges": {"rules": {"metrics": ["safety", "helpfulness", "helpfulness_safe"]}}},
            "which the miniature's rules do not score",
        ),
        (
            {"training": {"gpus": 2}},
            "'training.gpus' is 2, but 'bold', a checkpoint of the miniature, is trained on a CPU",
        ),
        (
            {
                "training": {
                    "tuning": "full",
                    "weights_dtype": "bfloat16",
                    "optimizer": "adamw_torch_8bit",
                }
            },
            "'training.weights_dtype' is bfloat16, but 'bold', a checkpoint of the miniature, is",
        ),
        (
            {"training": {"quantization": "int4"}},
            "'training.quantization' is int4, but 'bold', a checkpoint of the miniature, is",
        ),
        (
            {"suite": "published", "published": {"label_sets": [], "result_sets": []}},
            "config: published.label_sets and published.result_sets are both empty",
        ),
    ],
)
def test_a_contradiction_is_one_line(changes, line):
    with pytest.raises(UserError) as error:
        check_experiment(check({"run": "x", **changes}))
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"sources": None}, "'sources' is missing: under 'suite: toolemu' it takes names from"),
        ({"emulator": {"model": None}}, "'emulator.model' is missing: under 'suite: toolemu'"),
        ({"judges": {"two": {}}}, "'judges.two.model' is missing: under 'suite: toolemu'"),
        ({"sources": ["smal"]}, "'sources' holds 'smal', which is not in 'models': did you mean"),
        ({"training": {"sources": ["judge"]}}, "'training.sources' holds 'judge', which is not in"),
        (
            {"sources": ["small", "judge"], "training": {"sources": None}},
            "'training.sources' would train 'judge', whose weights are on a server",
        ),
        (
            {"models": {"small": {"model": "a/small", "template_options": {"today": "Monday"}}}},
            "'models.small.template_options.today' is not a date in quotes, such as '2024-07-26'",
        ),
        (
            {
                "models": {
                    "small": {
                        "model": "a/small",
                        "thinking": True,
                        "template_options": {"enable_thinking": True},
                    }
                }
            },
            "'models.small.thinking' and 'models.small.template_options.enable_thinking' are both",
        ),
        (
            {"models": {"small": {"model": "a/small", "trust_remote_code": True}}},
            "'training.sources' would train 'small', which needs 'trust_remote_code'",
        ),
        (
            {"models": {"small": {"model": "a/small", "adapter": "lora"}}},
            "'training.sources' would train 'small', which has an adapter of its own: merge it",
        ),
        (
            {"models": {"judge": {"model": "j", "backend": "openai", "quantization": "int4"}}},
            "'models.judge.quantization' is 'int4', but with the backend openai the server decides",
        ),
        (
            {"models": {"small": {"model": "s", "backend": "vllm", "quantization": "int8"}}},
            "'models.small.quantization' is 'int8', which the backend vllm does not do",
        ),
        (
            {"models": {"small": {**OWN_SERVER, "quantization": "int8"}}},
            "'models.small.quantization' is 'int8', which the backend openai does not do",
        ),
        (
            {"models": {"small": {"model": "a/small", "lora": True}}},
            "'models.small.lora' is true, which is for a server of your own: write backend: openai",
        ),
        (
            {"models": {"small": {"model": "a/small", "backend": "openai", "lora": True}}},
            "'models.small.lora' is true, which is for a server of your own: write backend: openai",
        ),
        (
            {"models": {"small": {**OWN_SERVER, "lora": True}}, "training": {"tuning": "full"}},
            "'models.small.lora' is true, but 'training.tuning: full' leaves whole weights",
        ),
        (
            {
                "models": {"small": {**OWN_SERVER, "lora": True}},
                "training": {"lora": {"dora": True}},
            },
            "'models.small.lora' is true, but 'training.lora.dora: true' leaves whole weights",
        ),
        (
            {
                "models": {"small": {**OWN_SERVER, "lora": True}},
                "training": {"lora": {"r": 256}, "recipes": [["safe", "help", "both"]]},
            },
            "the longest recipe makes adapters of rank 768 for 'small', and vLLM serves up to 512",
        ),
        ({"judges": {"one": {"model": "judge", "mode": "logits"}}}, "'judges.one.mode' is logits"),
        (
            {"training": {"tuning": "full", "quantization": "int4"}},
            "'training.tuning' is full, which cannot train weights of",
        ),
        (
            {"training": {"tuning": "full", "stage_from": "adapter"}},
            "'training.stage_from' is adapter, but 'training.tuning: full' has none",
        ),
        (
            {"training": {"weights_dtype": "bfloat16", "optimizer": "adamw_torch_8bit"}},
            "'training.weights_dtype' is bfloat16, but 'training.tuning: lora' trains an adapter",
        ),
        (
            {
                "training": {
                    "tuning": "full",
                    "weights_dtype": "bfloat16",
                    "optimizer": "adamw_8bit",
                }
            },
            "'training.optimizer' adamw_8bit rounds most steps away: write adamw_torch_8bit, or",
        ),
        (
            {"training": {"optimizer": "adamw_8bit", "gpus": 2, "distributed": "fsdp2"}},
            "'training.optimizer' is adamw_8bit, which does not work with 'training.distributed: "
            "fsdp2'",
        ),
        (
            {"training": {"keep": "best", "validation": 0}},
            "'training.validation' is 0, so that test cases would choose the step",
        ),
        (
            {"training": {"router_aux_loss_coef": 0.01, "batching": "case"}},
            "training.router_aux_loss_coef' needs rows of their own",
        ),
        (
            {"training": {"tuning": "full", "reference_logps": "batch"}},
            "'training.tuning' is full, which keeps no parent beside the policy",
        ),
        (
            {"training": {"batch_size": 1, "gradient_accumulation_steps": 7, "gpus": 2}},
            "'training.gradient_accumulation_steps' is 7, which 2 GPUs ('training.gpus') cannot "
            "share",
        ),
        ({"budget": 5}, "'budget' is 5, but 'models.judge.price' is missing: write its price"),
        (
            {"models": {"judge": {"model": "j", "backend": "openai", "price": {"input": 1}}}},
            "'models.judge.price' lacks output: write the price of a million tokens",
        ),
        (
            {"rollouts": {"samples": 2, "temperature": 0}},
            "'rollouts.samples' is 2 at 'rollouts.temperature' 0, where all samples of 'small' are "
            "the same rollout: write 1, or a temperature",
        ),
        (
            {"judges": {"one": {"model": "judge", "replicates": 2}}},
            "'judges.one.replicates' is 2 at 'judges.one.temperature' 0, where all are the same "
            "label and would count as agreement: write 1, or a temperature",
        ),
        (
            {
                "judges": {
                    "one": {"model": "small", "mode": "logits", "replicates": 2, "temperature": 1}
                }
            },
            "'judges.one.replicates' is 2, but 'mode: logits' gives the same label each time",
        ),
        ({"rollouts": {"shards": 73}}, "only 72 test cases ('toolemu.cases', halved)"),
    ],
)
def test_a_contradiction_about_models_is_one_line(changes, line):
    with pytest.raises(UserError) as error:
        check_experiment(llms(**changes))
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"models": {"small": {"model": "small", "backend": "openai"}}},  # not trained, so no lora
        {"models": {"small": {"model": "a/small", "trust_remote_code": True}}},
        {"toolemu": {"cases": 4}, "rollouts": {"shards": 4}},
        {"training": {"recipes": [], "quantization": "int4", "tuning": "full"}},
    ],
)
def test_what_only_training_forbids_is_allowed_where_nothing_trains(changes):
    check_experiment(llms(**{"training": {"sources": None, "recipes": []}} | changes))
    trained = {"sources": ["small"], "recipes": [["safe"]]}
    with pytest.raises(UserError):
        check_experiment(llms(**changes | {"training": changes.get("training", {}) | trained}))


def test_a_comparison_has_no_more_shards_than_cases():
    asked = llms(
        toolemu={"cases": 4}, rollouts={"shards": 5}, training={"sources": None, "recipes": []}
    )
    with pytest.raises(UserError, match=r"a run has only 4 cases \('toolemu.cases'\): write fewer"):
        check_experiment(asked)


GREEDY = {"temperature": 0, "samples": 2}
OMITS = {"backend": "openai", "omit": ["temperature"]}


@pytest.mark.parametrize(
    "changes",
    [
        {"rollouts": GREEDY, "emulator": {"temperature": 0.7}},
        {"rollouts": GREEDY | {"temperature": 0.1}},
        {"judges": {"one": {"model": "judge", "replicates": 2, "temperature": 0.1}}},
        {
            "models": {"judge": {"model": "judge", **OMITS}},
            "judges": {"one": {"model": "judge", "replicates": 2}},
        },
        {
            "models": {name: {"model": name, **OMITS} for name in ("small", "large")},
            "rollouts": GREEDY,
            "training": {"sources": None, "recipes": []},
        },
    ],
)
def test_samples_and_replicates_that_can_differ_are_allowed(changes):
    try:
        check_experiment(llms(**changes))
    except UserError as error:
        assert "the same" not in str(error)


def test_replicates_of_the_miniatures_rules_are_allowed():
    check_experiment(check({"run": "x", "judges": {"rules": {"replicates": 2}}}))


def test_what_does_not_matter_to_the_suite_is_not_checked():
    asked = {"run": "x", "suite": "published", "training": {"sources": ["bald"]}}
    asked["preferences"] = {"consistency": "exact"}  # released judges have replicates
    check_experiment(check(asked))


HUMAN = {"labels": "labels.csv"}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"models": {"m": {"model": "x"}}, "judges": {"human": HUMAN | {"model": "m"}}},
            "config: 'judges.human' has a 'model' and 'labels', which are of people: make two",
        ),
        (
            {"judges": {"human": HUMAN}},
            "config: all judges are people, and they only count where you name them: write "
            "'training.judged_by: human'",
        ),
        (
            {"judges": {"human": HUMAN}, "training": {"judged_by": "human"}},
            "write 'scores.judged_by: human'",
        ),
        (
            {"judges": {"rules": {}, "human": HUMAN}, "training": {"judged_by": ["humans"]}},
            "config: 'training.judged_by' holds 'humans', which is not in 'judges': did you mean "
            "'human'?",
        ),
        (
            {"scores": {"judged_by": "al"}},
            "config: 'scores.judged_by' holds 'al', which is not in 'judges': did you mean 'all'?",
        ),
        (
            {
                "judges": {"rules": {}, "human": HUMAN},
                "training": {"judged_by": ["rules", "human"]},
                "scores": {"judged_by": "own"},
            },
            "config: 'scores.judged_by' is own, which would average the few cases that people",
        ),
        (
            {"suite": "published", "judges": {"gpt5m": HUMAN}},
            "config: 'judges.gpt5m' has the name of a judge in the release or of a donor",
        ),
    ],
)
def test_people_are_apart_from_models_and_count_where_they_are_named(changes, line):
    with pytest.raises(UserError) as error:
        check_experiment(check({"run": "x"} | changes))
    assert line in str(error.value)


def test_people_need_no_model_and_may_score_one_metric():
    asked = llms(judges={"human": HUMAN | {"metrics": ["safety"]}, "one": {"model": "judge"}})
    check_experiment(asked)


@pytest.mark.parametrize(
    ("row", "preferences", "line"),
    [
        ("bold,official_0,0,safety,2,ann", {}, None),
        ("bald,official_0,0,safety,2,ann", {}, "labels.csv:2: the run has no checkpoint 'bald'"),
        (
            "bold,official_0,0,safety,2,ann",
            {"consistency": "exact"},
            "in 'judges.human.labels' no rollout has two raters",
        ),
        (None, {}, "labels.csv: no such file"),
    ],
)
def test_labels_of_people_are_checked_before_a_run_starts(tmp_path, row, preferences, line):
    path = tmp_path / "labels.csv"
    if row is not None:
        path.write_text(f"checkpoint,case_id,sample,metric,score,rater\n{row}\n")
    judges = {"rules": {"replicates": 2}, "human": {"labels": [str(path)]}}
    asked = check({"run": "x", "judges": judges, "preferences": preferences})
    check_experiment(asked)
    if line is None:
        check_files(asked)
        return
    with pytest.raises(UserError) as error:
        check_files(asked)
    assert line in str(error.value)


def judge_on_server(**fields):
    return llms(models={"judge": {"model": "judge", "backend": "openai", **fields}})


def test_a_source_on_a_server_that_loads_adapters_can_be_trained():
    own = {**OWN_SERVER, "lora": True, "revision": "main", "dtype": "bfloat16"}
    check_experiment(llms(models={"small": own}))


def test_options_may_nest():
    options = {
        "thinking": {"type": "disabled"},
        "provider": {"order": ["a", "b"], "allow_fallbacks": False, "max_price": None},
        "reasoning_effort": "low",
        "chat_template_kwargs": {"enable_thinking": False},
    }
    asked = judge_on_server(options=options)
    check_experiment(asked)
    assert asked["models"]["judge"]["options"] == options
    check_experiment(judge_on_server(options={"temperature": 1}, omit=["temperature"]))


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"options": {"messages": []}}, "'models.judge.options.messages' is given, but the workfl"),
        ({"options": {"model": "other"}}, "options.model' is given, but the workflow sets it"),
        ({"options": {"stream": True}}, "options.stream' is given"),
        ({"options": {"max_tokens": 5}}, "set rollouts.max_turn_tokens and its like, or max_tok"),
        ({"options": {"temperature": 1}}, "set rollouts.temperature and its like: leave it out"),
        ({"options": {"tools": [{}]}}, "no tool is really called"),
        ({"options": {"response_format": {"type": "text"}}}, "set structured"),
        ({"options": {"a": {"b": [{1: 2}]}}}, "'models.judge.options.a.b' has the key 1, which"),
        ({"options": {"a": {"b": float("nan")}}}, "options.a.b' is nan, which is no number"),
        ({"options": {"a": [date(2026, 1, 2)]}}, "which JSON cannot hold: put it in quotes"),
        ({"options": {"chat_template_kwargs": 1}}, "chat_template_kwargs' must be a map"),
        (
            {"options": {"chat_template_kwargs": {"enable_thinking": True}}, "thinking": False},
            "'models.judge.thinking' and 'models.judge.options.chat_template_kwargs.enable_think",
        ),
    ],
)
def test_options_are_json_and_no_field_of_ours(fields, line):
    with pytest.raises(UserError) as error:
        check_experiment(judge_on_server(**fields))
    assert line in str(error.value)
    assert "\n" not in str(error.value)
