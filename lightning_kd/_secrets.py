"""Keeps keys and passwords out of what is written down."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["MASK", "SECRETS", "mask_arguments", "without_secrets"]

#: What stands in the place of a secret.
MASK = "***"

#: Options that hold a secret: the command line refuses them.
SECRETS = {"token", "hf_token", "api_key", "apikey", "access_key", "secret", "secret_key", "password"}
#: What else the name of an option or a variable may end in, so that its value is masked.
_NAME = re.compile(rf"(^|_|-)({'|'.join(sorted(SECRETS))}|accesskey|secretkey|passwd|credentials?)$", re.IGNORECASE)

#: Shorter values of such variables are no secrets, and would be found in many words.
_SHORTEST = 8


def without_secrets(value: Any, name: str = "") -> Any:
    """A copy of a configuration with every secret masked.

    A text is secret if its option's name says so (``api_key``, ``token``, ``password``, ...), or if it holds the value
    of an environment variable whose name does.

    Args:
        value: Mappings, lists and plain values.
        name: Of the option that holds it.

    Example:
        >>> without_secrets({"api_key": "abc", "tokenizer": "bert", "max_tokens": 3})
        {'api_key': '***', 'tokenizer': 'bert', 'max_tokens': 3}
    """
    if isinstance(value, Mapping):
        return {key: without_secrets(each, str(key)) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_secrets(each, name) for each in value]
    if not isinstance(value, str) or not value:
        return value
    return MASK if _NAME.search(name) else _without_values(value)


def mask_arguments(arguments: Sequence[str]) -> list[str]:
    """What was typed, with the values of secret options masked.

    Example:
        >>> mask_arguments(["fit", "--logger.api_key", "abc", "--logger.token=abc", "--x", "1"])
        ['fit', '--logger.api_key', '***', '--logger.token=***', '--x', '1']
    """
    masked = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        option, equals, _ = argument.partition("=")
        if option.startswith("--") and equals and _NAME.search(option.rpartition(".")[2]):
            masked.append(f"{option}={MASK}")
        elif before.startswith("--") and "=" not in before and _NAME.search(before.rpartition(".")[2].lstrip("-")):
            masked.append(MASK)
        else:
            masked.append(_without_values(argument))
    return masked


def _without_values(text: str) -> str:
    for variable, secret in os.environ.items():
        if len(secret) >= _SHORTEST and _NAME.search(variable):
            text = text.replace(secret, MASK)
    return text
