"""Build the miniature's tokenizer: one token per word of the world, bytes for everything else.

It is a byte-level BPE without merges: words of the demonstrations are looked up whole, as in
Llama 3's tokenizer, and any other text still round-trips. To copy an id or a name is to copy one
token, which a tiny model can learn.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END, PAD = "<|end|>", "<|pad|>"
ROLES = ("system", "user", "assistant")
CONTEXT = 512  # tokens

#: A role token, the text and an end token per message. `generation` marks the agent's tokens.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
#: A heading such as `\nAction Input:`, a word, a number, or punctuation with the spaces inside it.
WORDS = (
    r"\n?[A-Z][a-z]+(?: [A-Z][a-z]+)*:"
    r"| ?[A-Za-z]+[0-9]*"
    r"| ?[0-9]+"
    r"| ?[^\sA-Za-z0-9]+(?: [^\sA-Za-z0-9]+)*(?: (?=[0-9]))?"
    r"|\s+"
)


def train_tokenizer(texts: Iterable[str]) -> "PreTrainedTokenizerFast":
    """Build a tokenizer of the words in `texts`.

    Args:
        texts: everything that agents read and write.

    Returns:
        A tokenizer with chat template and special tokens. Its vocabulary is sorted, so that the
        order of the texts does not matter.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    words = {word for text in texts for word, _ in split.pre_tokenize_str(text)}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {
        word: number for number, word in enumerate([*alphabet, *sorted(words - {*alphabet})])
    }
    model = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    model.pre_tokenizer, model.decoder = split, decoders.ByteLevel()
    special = [PAD, END, *(f"<|{role}|>" for role in ROLES)]
    model.add_special_tokens([AddedToken(token, special=True) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
