"""docs/commands.md: what every command takes, as its own --help says it. A test compares the two.

python scripts/commands.py            writes it anew
"""

from __future__ import annotations

from pathlib import Path

import click

from widefield.cli import widefield

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"
SHAPE = {"terminal_width": 110, "max_content_width": 110}
HEAD = """# Commands

What `--help` says, made by `python scripts/commands.py`. Defaults are in parentheses. Every command exits with 0 when
it is done, 1 for a fault that is yours to mend, said in one line, 2 for a command line that cannot be, 130 when it was
interrupted. With `--json` there is one JSON object on stdout and nothing else.
"""


def page() -> str:
    """All of the page."""
    with click.Context(widefield, info_name="widefield", **{**widefield.context_settings, **SHAPE}) as root:
        return "\n".join([HEAD, *(_section(root, name) for name in widefield.list_commands(root))])


def _section(root: click.Context, name: str) -> str:
    command = widefield.get_command(root, name)
    assert command is not None
    with click.Context(command, info_name=name, parent=root, **SHAPE) as context:
        lines = command.get_help(context).splitlines()
    return "\n".join([f"## {name}", "", "```text", *(line.rstrip() for line in lines), "```", ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
