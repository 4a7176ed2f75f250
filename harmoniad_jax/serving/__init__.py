"""A server that judges images: an HTTP API, and a page for people at the line."""
