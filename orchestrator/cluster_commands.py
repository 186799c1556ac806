"""`thresher cluster`: a Ray of several nodes on this machine, for development."""

import json
from typing import Annotated, Any

import typer

from jobs.errors import ClusterUnreachable

app = typer.Typer(help="A Ray of several nodes on this machine, for development.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


@app.command()
def up(
    nodes: Annotated[int, typer.Option(help="How many nodes, the head among them.")] = 3,
    cpus_per_node: Annotated[int, typer.Option(help="CPUs that each node says it has.")] = 2,
    as_json: Json = False,
) -> None:
    """Start the nodes, and leave them running. Prints how to reach them."""
    from cluster.local import LocalCluster, cluster_home

    _show(LocalCluster(nodes, cpus_per_node, home=cluster_home()), as_json)


@app.command()
def status(as_json: Json = False) -> None:
    """Show which nodes live, and how to reach them. Exit code 3 without a cluster."""
    from cluster.local import LocalCluster, cluster_home

    found = LocalCluster.find(cluster_home())
    if found is None or 0 not in found.nodes:
        left = "" if found is None else "; something is left of one, for `thresher cluster down`"
        raise ClusterUnreachable(f"no local cluster is up{left}; start one with: thresher cluster up")
    _show(found, as_json)


@app.command()
def down(as_json: Json = False) -> None:
    """End the nodes and everything that runs on them, whoever started them."""
    from cluster.local import LocalCluster, cluster_home

    found = LocalCluster.find(cluster_home())
    ended = len(found.processes()) if found else 0
    if found is not None:
        found.stop()
    text = f"ended {ended} processes" if found else "no local cluster is up"
    typer.echo(json.dumps({"processes": ended}) if as_json else text)


def _show(cluster: Any, as_json: bool) -> None:
    nodes = cluster.nodes
    if as_json:
        listed = [{"node": number, "ip": address} for number, address in nodes.items()]
        document = {"address": cluster.address, "dashboard": cluster.dashboard, "nodes": listed}
        typer.echo(json.dumps(document | {"environment": cluster.client_environment}, indent=2))
        return
    lines = [
        f"nodes      {', '.join(f'{number} ({address})' for number, address in nodes.items())}",
        f"address    {cluster.address}",
        f"dashboard  {cluster.dashboard}",
        "",
        f"export {' '.join(f'{name}={value}' for name, value in cluster.client_environment.items())}",
        "thresher serve                  # the queue, on this cluster",
        f"thresher run SPEC --address {cluster.address}",
        f"thresher submit SPEC --ray {cluster.dashboard}",
    ]
    typer.echo("\n".join(lines))
