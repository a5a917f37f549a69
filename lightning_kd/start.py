"""The command `lightning-kd`: a mistyped subcommand is answered before anything that takes seconds is imported."""

from __future__ import annotations

import sys

from lightning_kd._checks import unknown_subcommand

__all__ = ["SUBCOMMANDS", "main"]

SUBCOMMANDS = (
    *("fit", "validate", "test", "predict"),
    *("quantize", "analyze", "prune"),
    *("describe", "compare", "sweep"),
)


def main() -> None:
    """Run the command line on ``sys.argv``."""
    typed = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if not typed.startswith("-") and typed not in SUBCOMMANDS:
        print(f"error: {unknown_subcommand(typed, SUBCOMMANDS)} See `lightning-kd --help`.", file=sys.stderr)
        sys.exit(2)
    from lightning_kd.cli import main as run

    run()
