"""What the server knows: of its model, of its watched folder, of recent images."""

from fastapi import FastAPI

from harmoniad_jax.serving import answers
from harmoniad_jax.serving.answers import ModelFacts, Problem, model_facts
from harmoniad_jax.serving.drift import Moved
from harmoniad_jax.serving.guards import RefusedError
from harmoniad_jax.serving.service import Service


def add_facts(app: FastAPI, service: Service) -> None:
    """Adds the routes."""

    @app.get("/v1/model", tags=["model"])
    async def model() -> ModelFacts:
        """What the server judges with: products, thresholds, limits."""
        entry = service.thresholds.entry
        return model_facts(
            service.opened,
            service.limits,
            calibrated=entry.time if entry else None,
            collects=service.collect is not None,
            watches=service.watcher is not None,
        )

    @app.get("/v1/watched", tags=["images"], responses={404: {"model": Problem}})
    async def latest_watched(after: int = 0) -> answers.Watched:
        """The latest images of the folder that `--watch` names, with their pictures."""
        if service.watcher is None:
            raise RefusedError(404, "this server watches no folder; give --watch=DIR")
        last, rows = service.watcher.after(after)
        return answers.Watched(last=last, results=rows)

    @app.get("/v1/drift", tags=["model"])
    async def drift() -> list[Moved]:
        """Whether recent images look like those that the thresholds were set on.

        Every 50 images of a product are compared; a product with fewer is not listed.
        """
        return service.drift.latest()
