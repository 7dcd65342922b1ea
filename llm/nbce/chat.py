"""What a chat template puts before and after the user's words.

    <|user|> prefix, context, separator, question <|end|><|assistant|>

The template is rendered once around a marker and taken apart there, so that contexts can be read
before there is a question.
"""

from typing import Any

# Not trimmed, translated or escaped by any template, and in nobody's prompt.
MARKER = "ropewalk-marker-7f3a91"


def chat_frame(tokenizer: Any) -> tuple[str, str]:
    """The text before and after what the user says, up to where the answer begins.

    Args:
        tokenizer: with a chat template.

    Raises:
        ValueError: it has no template, or one that does not show the user's words once.
    """
    name = type(tokenizer).__name__
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"chat=True: expected a tokenizer with a chat template, got {name} without; leave chat "
            "out, or use the tokenizer of a model that was trained to chat"
        )
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": MARKER}], tokenize=False, add_generation_prompt=True
    )
    parts = text.split(MARKER)
    if len(parts) != 2:
        raise ValueError(
            f"chat=True: expected a chat template that shows the user's words once, {name}'s shows "
            f"them {len(parts) - 1} times; write the prompt out as prefix and separator instead"
        )
    return parts[0], parts[1]
