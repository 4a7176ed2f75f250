"""Posts every result of a watched folder to an address."""

import logging
import urllib.parse
import urllib.request
from pathlib import Path

from harmoniad_jax.errors import UserError
from harmoniad_jax.serving.outbox import Outbox

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 10.0


class Webhook(Outbox):
    """Posts lines of JSON, in order, until each is answered with a status of 200 to 299."""

    name = "webhook"

    def __init__(self, address: str, results: Path):
        """Reads how far it was.

        Args:
          address: http or https.
          results: the file of lines, which grows.

        Raises:
          UserError: another kind of address, or a damaged file.
        """
        if urllib.parse.urlsplit(address).scheme not in ("http", "https"):
            raise UserError(f"--webhook={address} must begin with http:// or https://.")
        super().__init__(results)
        self._address = address

    def _send(self, line: bytes) -> bool:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._address, line, headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):
                return True
        except (OSError, ValueError) as error:  # HTTPError is an OSError
            logger.warning("webhook: %s; it is tried again", error)
            return False
