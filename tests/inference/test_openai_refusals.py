"""Read the errors of servers, in the words of each of them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsafe.inference.openai_refusals import error_in, is_content_reason, read_refusal

WANTED = 4096  # tokens of the answer


def read(message, status=400, wanted=WANTED, field="max_tokens", **error):
    return read_refusal(status, {"error": {"message": message, **error}}, wanted, field)


LEFT = 8192 - 4905


@pytest.mark.parametrize(
    "message",
    [
        # OpenAI and DeepSeek, vLLM (two), SGLang, TGI and Together, OpenRouter, Anthropic,
        # TensorRT-LLM
        "This model's maximum context length is 8192 tokens. However, you requested 9001 tokens "
        "(4905 in the messages, 4096 in the completion). Please reduce the length of either.",
        "'max_tokens' or 'max_completion_tokens' is too large: 4096. This model's maximum context "
        "length is 8192 tokens and your request has 4905 input tokens (4096 > 8192 - 4905).",
        "You passed 4905 input tokens and requested 4096 output tokens. However, the model's "
        "context length is only 8192 tokens, resulting in a maximum input length of 4096 tokens.",
        "Requested token count exceeds the model's maximum context length of 8192 tokens. You "
        "requested a total of 9001 tokens: 4905 tokens from the input messages and 4096 tokens for "
        "the completion. Please reduce the number of tokens in the input messages.",
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8192. Given: 4905 "
        "`inputs` tokens and 4096 `max_new_tokens`",
        "This endpoint's maximum context length is 8,192 tokens. However, you requested about "
        "9,001 tokens (4,905 of text input, 4,096 in the output).",
        "input length and `max_tokens` exceed context limit: 4905 + 4096 > 8192, decrease input "
        "length or `max_tokens` and try again",
        "The sum of prompt length (4905.0), query length (0) and max_tokens (4096) should not "
        "exceed max_seq_len (8192)",
    ],
)
def test_the_room_that_an_error_names(message):
    found = read(message)
    assert (found.kind, found.room, found.limit) == ("context", LEFT, 8192)


@pytest.mark.parametrize(
    "message",
    [
        # SGLang, vLLM, Anthropic, Fireworks, Gemini, Mistral, Alibaba, OpenAI, Zhipu (two)
        "The input (9001 tokens) is longer than the model's context length (8192 tokens).",
        "The decoder prompt (length 5000) is longer than the maximum model length of 4096.",
        "prompt is too long: 210000 tokens > 200000 maximum",
        "The prompt is too long: 9001, model maximum context length: 8191",
        "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
        "Prompt contains 33000 tokens, too large for model with 32768 maximum context length",
        "Range of input length should be [1, 30720]",
        "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in "
        "300000 tokens.",
        "Prompt exceeds max length",
        "Prompt 超长",
    ],
)
def test_a_prompt_that_is_too_long_for_any_answer(message):
    assert (read(message).kind, read(message).room) == ("context", 0)


@pytest.mark.parametrize(
    "message",
    [
        # OpenAI, vLLM (two), llama.cpp, LM Studio, Groq, Moonshot, Cerebras, xAI
        "This model's maximum context length is 8192 tokens. However, your messages resulted in "
        "9001 tokens. Please reduce the length of the messages.",
        "This model's maximum context length is 8192 tokens. However, you requested 4096 output "
        "tokens and your prompt contains at least 4097 input tokens, for a total of at least 8193.",
        "You passed 9001 input tokens and requested 4096 output tokens. However, the model's "
        "context length is only 8192 tokens, resulting in a maximum input length of 4096 tokens.",
        "request (9001 tokens) exceeds the available context size (8192 tokens), try increasing it",
        "Trying to keep the first 5000 tokens when context the overflows. However, the model is "
        "loaded with context length of only 4096 tokens, which is not enough.",
        "Please reduce the length of the messages or completion.",
        "Invalid request: Your request exceeded model token limit: 8192 (requested: 9001)",
        "Please reduce the length of the messages or completion. Current length is 9001 while "
        "limit is 8192",
        "This model's maximum prompt length is 131072 but the request contains 150000 tokens.",
        "The request exceeds the model's context",
        "context overflow",
    ],
)
def test_an_error_whose_room_is_not_certain_names_none(message):
    assert read(message).kind == "context"
    assert not read(message).room


def test_the_numbers_beside_llama_cpps_message():
    size = {"n_prompt_tokens": 4905, "n_ctx": 8192}
    found = read("the request exceeds the available context size", **size)
    assert (found.room, found.limit) == (LEFT, 8192)


def test_codes_and_a_status_are_enough():
    for code in ("context_length_exceeded", "exceed_context_size_error"):
        assert read("no", code=code).kind == "context"
    assert read_refusal(413, "<html>Request Entity Too Large</html>", 64).kind == "context"
    assert read("Internal error", 500).kind == "other"
    assert read("This model's maximum context length is 8 tokens", 500).kind == "context"


@pytest.mark.parametrize(
    "message",
    [
        # OpenAI, DeepSeek, Alibaba, Anthropic, Groq, Gemini
        "max_tokens is too large: 4096. This model supports at most 2048 completion tokens.",
        "Invalid max_tokens value, the valid range of max_tokens is [1, 2048]",
        "Range of max_tokens should be [1, 2048]",
        "max_tokens: 4096 > 2048, which is the maximum allowed number of output tokens for "
        "claude-3-opus",
        "`max_tokens` must be less than or equal to `2048`, the maximum value for `max_tokens` is "
        "less than the `context_window` for this model",
        "Unable to submit request because it has a maxOutputTokens value of 4096 but the supported "
        "range is from 1 (inclusive) to 2049 (exclusive).",
    ],
)
def test_the_longest_answer_of_a_model(message):
    assert (read(message).kind, read(message).room) == ("output", 2048)
    assert read(message, wanted=1024).kind != "output"


@pytest.mark.parametrize(
    ("message", "field", "kind"),
    [
        ("Unsupported parameter: 'max_tokens' is not supported with this model. Use "
         "'max_completion_tokens' instead.", "max_tokens", "field"),
        ("max_tokens is deprecated, use max_completion_tokens", "max_tokens", "field"),
        ("Unrecognized request argument supplied: max_completion_tokens",
         "max_completion_tokens", "field"),
        ("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'.",
         "max_completion_tokens", "field"),  # sent before the other refusal came
        ("Unsupported value: 'temperature' does not support 0.0 with this model.",
         "max_tokens", "other"),
    ],
)  # fmt: skip
def test_the_name_of_the_limit(message, field, kind):
    assert read(message, field=field).kind == kind


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, {"message": "Content Exists Risk", "type": "invalid_request_error"}),  # DeepSeek
        (400, {"message": "Input data may contain inappropriate content.",
               "code": "data_inspection_failed"}),  # Alibaba
        (400, {"code": "1301", "message": "系统检测到输入或生成内容可能包含敏感内容"}),  # Zhipu
        (400, {"message": "The request was rejected because it was considered high risk",
               "type": "content_filter"}),  # Moonshot
        (400, {"message": "The prompt triggered Azure OpenAI's content management policy.",
               "innererror": {"code": "ResponsibleAIPolicyViolation"}}),
        (400, {"message": "Output blocked by content filtering policy"}),  # Anthropic
        (403, {"code": 403, "message": "Your input was flagged", "metadata": {"reasons": []}}),
        (403, {"message": "Content violates usage guidelines."}),  # xAI
        (400, {"code": "SensitiveContentDetected", "message": "The request failed"}),  # Volcengine
        (400, {"message": "no", "status": "PROHIBITED_CONTENT"}),  # Gemini
        (400, {"message": "Your prompt was flagged", "code": "invalid_prompt"}),  # OpenAI
        (400, {"message": "Your request was rejected as a result of our safety system."}),
        (451, {"message": "Unavailable"}),  # StepFun
        (422, {"message": "The request was blocked due to our usage policy"}),
    ],
)  # fmt: skip
def test_a_refusal_of_the_content(status, error):
    assert read_refusal(status, {"error": error}, WANTED).kind == "content"
    assert read_refusal(status, error, WANTED).kind == "content"
    assert read_refusal(status, [{"error": error}], WANTED).kind == "content"


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "Unknown field: top_q"),
        (400, "Invalid 'stop': array too long. Expected an array with maximum length 4."),
        (400, "temperature must be <= 2"),
        (400, "{'input': " + "x" * 600 + " what is a context window and a content policy?}"),
        (401, "Incorrect API key; see our usage policy"),
        (403, "<html><body>Your request was blocked by our usage policy</body></html>"),
        (403, "Country, region, or territory not supported"),
        (404, "The model `safety` does not exist."),
        (429, "Requests are moderated: too many tokens"),
        (503, "The moderation service is unavailable"),
        (504, "The request exceeded its time limit"),
    ],
)
def test_other_refusals_are_not(status, message):
    assert read(message, status).kind == "other"


def test_an_account_without_credit_and_a_model_that_spent_its_tokens():
    assert read("You exceeded your quota", 429, code="insufficient_quota").kind == "quota"
    assert read("Could not finish the message because max_tokens or…").kind == "spent"


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ({"error": {"message": "The provider failed", "code": 502}}, 502),
        ({"error": {"message": "flagged", "code": 403}}, 403),
        ({"error": "Model is loading"}, 502),
        ({"choices": None, "base_resp": {"status_code": 1026, "status_msg": "sensitive"}}, 400),
        ({"choices": [], "promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}, 400),
        ({"choices": [{"finish_reason": "error", "error": {"message": "x", "code": 429}}]}, 429),
    ],
)
def test_an_error_under_status_200_is_found(answer, status):
    found, error = error_in(answer)
    assert found == status
    if status in (400, 403):
        assert read_refusal(found, error, WANTED).kind == "content"


@pytest.mark.parametrize("answer", [None, [], "x", {}, {"choices": [{"message": {}}]}])
def test_no_error_is_found_in_anything_else(answer):
    assert error_in(answer) is None


def test_reasons_for_which_an_answer_is_filtered():
    for reason in ("content_filter", "SAFETY", "sensitive", "PROHIBITED_CONTENT", "refusal"):
        assert is_content_reason(reason)
    for reason in ("stop", "length", "tool_calls", "error", ""):
        assert not is_content_reason(reason)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=9,
)


@given(st.integers(400, 599), anything, st.integers(1, 9999))
def test_any_body_is_read_and_a_room_is_less_than_was_refused(status, body, wanted):
    for each in (body, {"error": body}):
        found = read_refusal(status, each, wanted)
        assert found.room is None or 0 <= found.room < wanted
        error_in(each)


WORDS = ["context", "length", "prompt", "in", "8192", "4905", "4096", "9001", "+", ">", "<=", "("]


@given(st.lists(st.sampled_from(WORDS)))
def test_any_numbers_give_a_room_below_what_was_refused(words):
    found = read(" ".join(words))
    assert found.room is None or 0 <= found.room < WANTED
    json.dumps(found.message)
