"""`--cluster`: one command line, many processes, one picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from widefield.commands import arguments
from widefield.commands.output import print_json, show_count, show_seconds
from widefield.commands.progress import reporter

if TYPE_CHECKING:
    from widefield.cluster.join import Joined
    from widefield.drawn import DrawnPicture
    from widefield.picture import Picture


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker makes, said so that it can be sent to other machines: a method of Model, its arguments, a path.

    Paths in it mean the same wherever it is carried out: the machines share a file system.
    """

    kind: str
    bundle: Path | None
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    out: Path
    lease_seconds: float | None = None
    latents: Path | None = None

    def picture(self) -> Picture | DrawnPicture:
        """Open the bundle; nothing is computed yet."""
        model = arguments.open_model(self.bundle, verify=True)
        made: Picture | DrawnPicture = getattr(model, self.kind)(*self.arguments, **self.keywords)
        return made

    def join(self, **more: Any) -> Joined:
        """Carry it out, together with all who do."""
        from widefield.cluster.join import LEASE_SECONDS, join

        lease = self.lease_seconds or LEASE_SECONDS
        with self.picture() as picture:
            return join(picture, self.out, lease_seconds=lease, latents=self.latents, **more)


def together(order: Order, cluster: str, *, as_json: bool, quiet: bool) -> int | None:
    """Carry an order out here, or on a Ray cluster; the exit status."""
    try:
        with reporter("working", quiet=quiet) as report:
            joined = _joined(order, cluster, report.talk)
    except KeyboardInterrupt:
        click.echo(f"interrupted; others go on with {order.out}, and so does the same command", err=True)
        return 130
    about = joined[0].as_dict() if cluster == "claims" else {"workers": [each.as_dict() for each in joined]}
    if as_json:
        print_json(about)
    elif not quiet:
        for each in joined:
            _tell(each)
    return None


def _joined(order: Order, cluster: str, talk: Any) -> list[Joined]:
    if cluster == "claims":
        return [order.join(talk=talk)]
    from widefield.cluster.actors import carry_out

    return carry_out(order, talk)


def _tell(joined: Joined) -> None:
    about = joined.as_dict()
    width, height = joined.size_px
    click.echo(f"{joined.path}: {width} x {height} px, finished")
    shards = show_count(about["shards_made"], "shard")
    tasks = show_count(about["tasks_made"], "task")
    click.echo(f"{shards} and {tasks} in all made by {joined.worker}, in {show_seconds(joined.seconds)}")
