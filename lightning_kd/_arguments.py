"""The arguments of a subcommand that needs no configuration; what is wrong with them is said in one sentence."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

from lightning_kd._checks import InputError, expected, nearest

__all__ = ["ArgumentParser"]


class ArgumentParser(argparse.ArgumentParser):
    """Raises an :class:`InputError` where argparse prints its usage.

    Args:
        subcommand: Its name.
        description: What it does.
    """

    def __init__(self, subcommand: str, description: str) -> None:
        super().__init__(f"lightning-kd {subcommand}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        options = [option for action in self._actions for option in action.option_strings]
        if unknown := re.match(r"unrecognized arguments: (\S+)", message):
            word = unknown[1].partition("=")[0]
            what = f"There is no option `{word}`." if word.startswith("-") else f"`{word}` belongs to no option."
            raise InputError(f"{what} {nearest(word, options)}".strip())
        if wrong := re.match(r"argument (--\w+): invalid int value: '(.*)'", message):
            raise expected(wrong[1], "a whole number", wrong[2])
        if missing := re.match(r"the following arguments are required: (\w+)", message):
            action = next(each for each in self._actions if each.metavar == missing[1])
            raise InputError(f"`{missing[1]}` is missing: {action.help}. See `{self.prog} --help`.")
        raise InputError(f"{message[:1].upper()}{message[1:]}.")
