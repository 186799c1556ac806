"""A file as an answer: whole, or the part that was asked for (RFC 9110, sections 13 and 14)."""

import re

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from orchestrator.service.answers import Refusal
from orchestrator.service.run_files import Opened

_RANGE = re.compile(r"^bytes=(\d{0,18})-(\d{0,18})$")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """(first byte, length) of what is asked for; None for the whole file, also where several parts are asked for.

    >>> parse_range("bytes=2-", 10)
    (2, 8)

    Raises Refusal (416) for a part that is not there.
    """
    found = _RANGE.match((header or "").replace(" ", ""))
    if found is None or found[0] == "bytes=-":
        return None
    first, last = found[1], found[2]
    if first and last and int(first) > int(last):
        return None
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    if start >= size or start >= stop:
        raise Refusal(416, "no such range", allowed=f"{size} bytes", headers={"Content-Range": f"bytes */{size}"})
    return start, stop - start


def file_answer(opened: Opened, request: Request, media_type: str = "application/octet-stream") -> Response:
    """The file, or a part of it; 304 where the caller has it already."""
    headers = {
        "ETag": opened.etag,
        "Accept-Ranges": "bytes",
        "Content-Disposition": f'attachment; filename="{_UNSAFE.sub("_", opened.name)}"',
        "Cache-Control": "private, no-cache",
    }
    try:
        if opened.etag in (each.strip() for each in request.headers.get("if-none-match", "").split(",")):
            opened.close()
            return Response(status_code=304, headers=headers)
        same = request.headers.get("if-range") in (None, opened.etag)
        part = parse_range(request.headers.get("range"), opened.size) if same else None
    except Refusal:
        opened.close()
        raise
    start, length = part or (0, opened.size)
    headers["Content-Length"] = str(length)
    if part is not None:
        headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{opened.size}"
    status = 206 if part is not None else 200
    return StreamingResponse(opened.chunks(start, length), status, headers, media_type)
