"""Parameters that several rooms have, with the texts that they accept."""

from typing import Annotated

from fastapi import Path, Query

from orchestrator.client.shapes import ALIAS, NAME

MOST = 2**53
"""Whole numbers up to here are the same in every JSON reader."""

JobId = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$", description="Of a job.")]
ProjectName = Annotated[str, Path(pattern=NAME)]
ModelName = Annotated[str, Path(pattern=NAME)]
ArtifactName = Annotated[
    str, Path(pattern=r"^[A-Za-z0-9_+][A-Za-z0-9._+-]{0,149}$", description="Of a run's artifact.")
]
Alias = Annotated[str, Path(pattern=ALIAS)]
Version = Annotated[int, Path(ge=1, le=1_000_000_000)]
Reference = Annotated[
    str,
    Path(
        pattern=r"^([1-9][0-9]{0,8}|[A-Za-z][A-Za-z0-9._-]{0,63})$",
        description="A version, an alias, or `latest`.",
    ),
]
FilePath = Annotated[str, Path(max_length=1000, description="Relative, with `/` between its parts.")]
OneProject = Annotated[
    str | None, Query(pattern=NAME, description="Only of this one; default: all that the token sees.")
]
After = Annotated[int, Query(ge=0, le=MOST)]
