"""What counts as a secret, and what does not."""

from __future__ import annotations

import pytest

from lightning_kd._secrets import mask_arguments, without_secrets


@pytest.mark.parametrize(
    "name", ["api_key", "apikey", "API_KEY", "hf_token", "token", "client_secret", "db_password", "aws_secret_key"]
)
def test_an_option_that_holds_a_secret_is_masked(name: str) -> None:
    """Stops a key from being written because its option is called a little differently."""
    assert without_secrets({"logger": [{"init_args": {name: "abc"}}]}) == {"logger": [{"init_args": {name: "***"}}]}
    assert mask_arguments([f"--trainer.logger.{name}=abc", f"--{name}", "abc"]) == [
        f"--trainer.logger.{name}=***",
        f"--{name}",
        "***",
    ]


@pytest.mark.parametrize(
    "name", ["tokenizer", "teacher_tokenizers", "tokens", "max_tokens", "words_column", "key", "monkey", "label_column"]
)
def test_nothing_else_is_masked(name: str) -> None:
    """Stops a tokenizer from being taken for a token: a run could not be repeated from its configuration."""
    config = {name: "abc", "init_args": {name: ["abc", 1, None, 2.5, True]}}
    assert without_secrets(config) == config
    assert mask_arguments([f"--data.{name}", "abc", f"--{name}=abc"]) == [f"--data.{name}", "abc", f"--{name}=abc"]


def test_the_value_of_a_secret_variable_is_masked_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops a shell's `$HF_TOKEN` from standing in a card, where it has no name any more."""
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    monkeypatch.setenv("SHORT_TOKEN", "a")
    monkeypatch.setenv("PLAIN", "plain-value")
    assert without_secrets({"url": "https://me:hf_0123456789@host", "a": "plain-value"}) == {
        "url": "https://me:***@host",
        "a": "plain-value",
    }
    assert mask_arguments(["--url", "x=hf_0123456789", "banana"]) == ["--url", "x=***", "banana"]


def test_a_missing_value_stays_missing() -> None:
    """Stops an option that was never given from looking as if it had been."""
    assert without_secrets({"api_key": None, "token": ""}) == {"api_key": None, "token": ""}
