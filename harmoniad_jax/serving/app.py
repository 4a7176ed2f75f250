"""The server as an application: its parts put together, see docs/guide-serve.md."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import FastAPI

from harmoniad_jax import __version__
from harmoniad_jax.serving.guards import LOCAL_NAMES, Guards
from harmoniad_jax.serving.limits import Limits
from harmoniad_jax.serving.opening import Opened
from harmoniad_jax.serving.page import build_page
from harmoniad_jax.serving.routes.facts import add_facts
from harmoniad_jax.serving.routes.judging import add_collecting, add_judging
from harmoniad_jax.serving.routes.operation import add_operation, add_pages
from harmoniad_jax.serving.routes.problems import add_error_handlers
from harmoniad_jax.serving.service import Service
from harmoniad_jax.serving.watch import Watched


def make_app(
    opened: Opened,
    limits: Limits | None = None,
    *,
    collect: Path | None = None,
    watched: Watched | None = None,
    token: str | None = None,
    hosts: tuple[str, ...] | None = LOCAL_NAMES,
) -> Guards:
    """The server as an ASGI application.

    Args:
      opened: what it judges with.
      limits: what it accepts.
      collect: folder for images that were good after all; None: they are not kept.
      watched: folder whose images are judged as they come; None: none.
      token: that clients must send; None: none.
      hosts: names that clients may call it by; None: any.

    Raises:
      UserError: the watched folder or its output cannot be used.
    """
    limits = limits or Limits()
    service = Service(opened, limits, collect, watched)
    page = build_page()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        del app
        service.start()
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="HarmoniAD",
        version=__version__,
        description="Judges images of products. A token goes into the header "
        "`Authorization: Bearer TOKEN`, if the server asks for one.",
        lifespan=lifespan,
        docs_url=None,  # those pages load scripts of other hosts
        redoc_url=None,
    )
    app.state.service = service
    add_error_handlers(app)
    add_judging(app, service)
    add_collecting(app, service)
    add_facts(app, service)
    add_operation(app, service)
    add_pages(app, page.html)
    guarded = Guards(
        app, policy=page.policy, largest_body=limits.bytes, token=token, hosts=hosts
    )
    guarded.service = service
    return guarded
