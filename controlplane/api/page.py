"""The page at ``/ui``: static files of the package, the same for everyone, which ask the REST API for all data."""

from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.types import Scope

import controlplane

FOLDER = Path(controlplane.__file__).parent / "ui"

HEADERS = {
    # Only files of this server run, and only this server is asked: a text that a model or a client brings along stays
    # text, whatever it contains.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Checked with the ETag at each use: an upgrade is seen at once.
    "Cache-Control": "no-cache",
}


class _PageFiles(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


def add_page(app: FastAPI) -> None:
    """Serve the page, and lead browsers that open the API's address to it."""
    app.add_api_route("/", _to_page, include_in_schema=False)
    app.add_api_route("/ui", _to_page, include_in_schema=False)
    for path in ("/docs", "/redoc"):
        app.add_api_route(path, _to_api, include_in_schema=False)
    app.mount("/ui", _PageFiles(directory=FOLDER, html=True), name="page")


async def _to_api(_request: Request) -> RedirectResponse:
    return RedirectResponse("/ui/#/api", status_code=307)


async def _to_page(_request: Request) -> RedirectResponse:
    return RedirectResponse("/ui/", status_code=307)
