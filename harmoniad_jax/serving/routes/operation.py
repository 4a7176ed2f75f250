"""What those ask who run the server, and the pages for people."""

from fastapi import FastAPI, Response
from fastapi.responses import HTMLResponse

from harmoniad_jax.serving.answers import Problem
from harmoniad_jax.serving.guards import RefusedError
from harmoniad_jax.serving.interface import interface_page
from harmoniad_jax.serving.service import Service


def add_operation(app: FastAPI, service: Service) -> None:
    """Adds probes and counters."""

    @app.get("/healthz", tags=["operation"])
    async def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "alive"}

    @app.get("/readyz", tags=["operation"], responses={503: {"model": Problem}})
    async def readyz() -> dict[str, str]:
        """Images can be judged."""
        if not service.ready:
            raise RefusedError(503, "the model is being loaded", retry_after=2)
        return {"status": "ready"}

    @app.get("/metrics", tags=["operation"])
    async def metrics() -> Response:
        """Counters in Prometheus' text format."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


def add_pages(app: FastAPI, page: str) -> None:
    """Adds the page for people, HTML, and the one that describes all routes."""

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(interface_page(app.openapi()))

    @app.get("/", include_in_schema=False)
    async def root() -> HTMLResponse:
        return HTMLResponse(page)
