"""Chat templates with the faults that are known of published ones."""

from tests.helpers.tiny_model import CHATML

#: Like Qwen3's: drops the thought of a turn once another turn follows.
FORGETS = CHATML.replace(
    "message['content'] +", "(message['content'] if loop.last else message['content'][-6:]) +"
)
#: Like Gemma's: no system role, the agent is called "model", messages are stripped.
GEMMA = (
    "{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<|im_start|>' + role + '\n' + message['content'] | trim + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
)
#: A blank before a turn's text, as in prompts of base models.
COLON = CHATML.replace("\\n' + message", ": ' + message").replace("assistant\\n", "assistant: ")
NEVER_OPENS = CHATML.split("{% if add_generation_prompt %}")[0]
ONE_TURN = "{% if messages | length > 2 %}{{ raise_exception('one turn') }}{% endif %}" + CHATML
LATER = CHATML.replace(
    "'<|im_start|>' + message", "('#' if messages | length > 3 else '') + '<|im_start|>' + message"
)
#: Like Mistral's: no text between a user's message and the answer, whether one is asked for or not.
NO_OPENING = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + '<|im_end|>' }}{% else %}"
    "{{ '<|im_start|>' + message['content'] + '<|im_start|>' }}{% endif %}{% endfor %}"
)
#: Like Phi-3's: an end of text where no answer is generated.
ENDS = CHATML.replace("{% endif %}", "{% else %}{{ '<|endoftext|>' }}{% endif %}")
#: Turns are rendered otherwise once others follow, as by many templates of reasoning models.
REWRITES = CHATML.replace(
    "message['content']",
    "('' if loop.last or message['role'] != 'assistant' else '~') + message['content']",
)
