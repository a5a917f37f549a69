"""Every example in a docstring runs, and gives what it says."""

from __future__ import annotations

import doctest
import importlib

import pytest
import torch

from source_tree import modules


@pytest.mark.parametrize("name", modules())
def test_examples(name: str) -> None:
    module = importlib.import_module(name)
    torch.manual_seed(0)
    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert failed == 0, "the examples that fail are printed above"
