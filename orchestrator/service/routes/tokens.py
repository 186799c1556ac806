"""Tokens: made, listed, revoked. A secret is in the answer that makes it, and nowhere else."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Path
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from orchestrator.client import shapes
from orchestrator.service.answers import Refusal, not_found
from orchestrator.service.here import Admin, Here, Viewer, refusals
from orchestrator.service.routes.parameters import OneProject
from orchestrator.service.views import token_view

router = APIRouter(tags=["tokens"])

_LONGEST_S = 10 * 365 * 86_400
TokenId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class Wanted(BaseModel):
    """What a new token may do."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=shapes.NAME, description="Whose it is, or what it is for.")
    role: shapes.Role
    project: str | None = Field(default=None, pattern=shapes.NAME, description="null: all projects.")
    expires_s: int | None = Field(default=None, ge=1, le=_LONGEST_S, description="From now; null: never.")


@router.get("/me", responses=refusals())
def me(who: Viewer) -> shapes.Token:
    """What the caller's own token may do."""
    return token_view(who.token)


@router.get("/tokens", responses=refusals(403, 404))
def tokens(here: Here, who: Admin, project: OneProject = None) -> shapes.TokenList:
    """Those of the projects that the caller is an admin of."""
    asked = who.only(project)
    return shapes.TokenList(tokens=tuple(token_view(each) for each in here.store.tokens(asked[0] if asked else None)))


@router.post("/tokens", status_code=201, response_model=shapes.NewToken, responses=refusals(403, 404))
def create_token(here: Here, who: Admin, wanted: Annotated[Wanted, Body()], response: Response) -> Any:
    """Make a token. An admin of one project makes tokens of that project."""
    project = wanted.project or who.token.project
    if not who.sees(project):
        raise not_found(f"project: {project}")
    expires_ms = None if wanted.expires_s is None else here.store.now_ms() + 1000 * wanted.expires_s
    if who.token.expires_ms is not None and (expires_ms is None or expires_ms > who.token.expires_ms):
        raise Refusal(403, "a token cannot outlive the one that made it", path="expires_s")
    token, secret = here.store.create_token(project, wanted.role, wanted.name, expires_ms)
    return shapes.NewToken(**token_view(token).model_dump(), secret=secret)


@router.delete("/tokens/{token_id}", status_code=204, responses=refusals(403, 404))
def revoke_token(here: Here, who: Admin, token_id: TokenId) -> None:
    """End a token at once. One that has been revoked is revoked."""
    found = next((each for each in here.store.tokens(who.token.project) if each.id == token_id), None)
    if found is None:
        raise not_found(f"token: {token_id}")
    here.store.revoke_token(token_id)
