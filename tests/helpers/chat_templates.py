"""Chat templates with the faults that are known of published ones."""

from tests.helpers.tiny_model import CHATML

#: Qwen3's way: the thought of a turn goes once another one follows.
FORGETS = CHATML.replace(
    "message['content'] +", "(message['content'] if loop.last else message['content'][-6:]) +"
)
#: As Gemma's: no system role, the agent called "model", blanks around a message cut.
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
#: A blank before a turn's text, as base models are prompted.
COLON = CHATML.replace("\\n' + message", ": ' + message").replace("assistant\\n", "assistant: ")
NEVER_OPENS = CHATML.split("{% if add_generation_prompt %}")[0]
ONE_TURN = "{% if messages | length > 2 %}{{ raise_exception('one turn') }}{% endif %}" + CHATML
LATER = CHATML.replace(
    "'<|im_start|>' + message", "('#' if messages | length > 3 else '') + '<|im_start|>' + message"
)
