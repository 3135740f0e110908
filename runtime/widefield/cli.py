"""`widefield COMMAND ...`: the group, what it exits with, and how a fault is said.

Exit 0 done; 1 a fault, in one line `error: found; wanted; do`; 2 misuse; 130 interrupted. A bug keeps its traceback.
Nothing but click is imported here, and a command is imported when it is asked for, so `--help` is quick.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

import click

from widefield import __version__
from widefield.commands.loading import Lazy, installed
from widefield.errors import WidefieldError

OURS = {
    "decode": "widefield.commands.decode:decode",
    "generate": "widefield.commands.generate:generate",
    "upscale": "widefield.commands.upscale:upscale",
    "encode": "widefield.commands.encode:encode",
    "inspect": "widefield.commands.inspect_path:inspect_path",
    "plan": "widefield.commands.plan:plan",
    "build": "widefield.commands.build:build",
    "doctor": "widefield.commands.doctor:doctor",
    "serve": "widefield.commands.serve:serve",
    "verify": "widefield.commands.verify:verify",
    "finalize": "widefield.commands.finalize:finalize",
}
# What the machine does to a run, and no mistake of ours: said in one line. Other OSErrors keep their traceback.
MISHAPS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE,
    errno.ENFILE, errno.ENAMETOOLONG, errno.ELOOP, errno.ESTALE,
}  # fmt: skip


class Commands(click.Group):
    """The built-in commands, and those of other installed packages (entry points of the group widefield.commands)."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*OURS, *installed()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in OURS:
            return Lazy(cmd_name, OURS[cmd_name]).command()
        found = installed().get(cmd_name)
        return None if found is None else found.command()

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click does, but for a command that cannot be loaded, which says so and stops nobody."""
        every = {**installed(), **{name: Lazy(name, target) for name, target in OURS.items()}}
        with formatter.section("Commands"):
            formatter.write_dl([(name, every[name].short_help()) for name in sorted(every)])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="widefield")
def widefield() -> None:
    """Pictures too large to hold, from diffusion models, tile by tile, in a memory budget that is planned first.

    \b
    widefield generate "islands" --size 8192x8192 -o islands.tif    a prompt to a picture of any size
    widefield upscale photo.jpg --scale 4 -o large.tif              a picture to a larger one
    widefield encode photo.png -o latents.npy       a picture to latents
    widefield decode latents.npy -o photo.tif       and back: a seamless pyramid, resumable
    widefield serve photo.tif                       look at one in the browser, or at one drawn as you look
    widefield plan --size 524288x524288             what a run would take; takes nothing
    widefield inspect photo.tif                     what is in a bundle or a picture

    Run `widefield COMMAND --help` for a command's options.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the exit status. See the head of this file."""
    try:
        result = widefield.main(None if argv is None else list(argv), "widefield", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as misuse:
        misuse.show()
        return misuse.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _say("interrupted; run the same command again", 130)
    except WidefieldError as fault:
        return _say(f"error: {fault}", 1)
    except BrokenPipeError:
        return _hang_up()
    except OSError as mishap:
        if mishap.errno not in MISHAPS:
            raise
        where = f"{mishap.filename}: " if mishap.filename else ""
        return _say(f"error: {where}{mishap.strerror}; wanted to read or write it; mend that and run again", 1)
    return result if isinstance(result, int) else 0


def _say(line: str, status: int) -> int:
    """One line on stderr, whatever was in it; the status."""
    print(line.replace("\n", " "), file=sys.stderr)
    return status


def _hang_up() -> int:
    """Whoever read our output went away: be quiet, also when Python flushes on its way out."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


if __name__ == "__main__":
    sys.exit(main())
