"""The API's manual at /docs: Swagger UI from our own files, so that it works without a network."""

from __future__ import annotations

import os

from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import Scope

router = APIRouter(include_in_schema=False)

_FOLDER = os.path.join(os.path.dirname(__file__), "static")
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Annoris API</title>
<link rel="stylesheet" href="static/swagger/swagger-ui.css">
<div id="ui"></div>
<script src="static/swagger/swagger-ui-bundle.js"></script>
<script src="static/docs.js"></script>
</html>
"""
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'"
)


class _Files(StaticFiles):
    """Files that a browser keeps and asks about by ETag: none of them is a secret."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        answer = await super().get_response(path, scope)
        answer.headers["Cache-Control"] = "no-cache"
        return answer


@router.get("/docs")
def docs() -> Response:
    return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _POLICY})


def install(app: FastAPI) -> None:
    app.mount("/static", _Files(directory=_FOLDER), name="static")
