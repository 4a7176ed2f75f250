"""What is wrong, as one line of JSON with a status."""

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from harmoniad_jax.serving.answers import Problem
from harmoniad_jax.serving.guards import RefusedError

logger = logging.getLogger(__name__)

REFUSALS = {
    status: {"model": Problem, "description": text}
    for status, text in {
        400: "The body is not what is described here.",
        401: "No token, or a wrong one.",
        413: "Too many bytes or images.",
        422: "An unknown category, or a rate or threshold that is none.",
        503: "Busy: try again after `Retry-After` seconds.",
        504: "It took too long.",
    }.items()
}


def add_error_handlers(app: FastAPI) -> None:
    """Whatever goes wrong is one line of JSON without a traceback."""

    def problem(status: int, message: str, headers=None) -> JSONResponse:
        return JSONResponse({"error": " ".join(message.split())}, status, headers)

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> JSONResponse:
        return problem(error.status, error.message, error.headers)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        if "Too many files" in str(error.detail) or "Too many fields" in str(error.detail):
            return problem(413, f"{error.detail}")
        return problem(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        parts = [f"{one['loc'][-1]}: {one['msg']}" for one in error.errors()]
        return problem(422, "; ".join(parts))

    @app.exception_handler(Exception)
    async def defect(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s failed", request.url.path, exc_info=error)
        return problem(500, "the server failed; its log says why")
