"""What a service allows: limits, times, and who may ask."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from lookalike.errors import OptionError

DEFAULT_REQUESTS = 6000  # per minute


@dataclass(frozen=True)
class ServiceOptions:
    """The settings of a service.

    Attributes:
        host: address that it listens on.
        allowed_hosts: names that may be in the header `Host`, besides localhost and IP addresses.
        cors_origins: origins of web pages, such as https://shop.example, that may use the service.
        require_token: whether reading needs a token, too.
        max_body: bytes of a request's body.
        max_header: bytes of a request's line and headers.
        max_pixels: pixels of an image.
        max_images: images of one request.
        max_top_k: hits of one request.
        max_batch: images that are embedded at once.
        max_wait_ms: how long an image waits for others that are being decoded.
        max_queue: images that are decoded, wait or are embedded; more are refused with status 429.
        max_connections: connections and requests at once; more are refused with status 503.
        max_requests: requests per minute of one token, or of one address without a token; more are refused with status
            429; 0 for no limit, None for no limit on loopback and `DEFAULT_REQUESTS` elsewhere.
        timeout: seconds that a request may take, from its headers to its answer.
        receive_timeout: seconds that a client may take to send a request.

    """

    host: str = "127.0.0.1"
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    require_token: bool = False
    max_body: int = 32_000_000
    max_header: int = 16_384
    max_pixels: int = 50_000_000
    max_images: int = 64
    max_top_k: int = 1000
    max_batch: int = 32
    max_wait_ms: float = 5.0
    max_queue: int = 256
    max_connections: int = 1000
    max_requests: int | None = None
    timeout: float = 30.0
    receive_timeout: float = 20.0

    def __post_init__(self) -> None:
        for name in (
            "max_body", "max_header", "max_pixels", "max_images", "max_top_k", "max_batch", "max_queue",
            "max_connections", "timeout", "receive_timeout",
        ):  # fmt: skip
            if not getattr(self, name) > 0:
                raise OptionError(f"`{name}` must be above 0, got {getattr(self, name)}.", argument=name)
        for name, value in {"max_wait_ms": self.max_wait_ms, "max_requests": self.max_requests or 0}.items():
            if not value >= 0:
                raise OptionError(f"`{name}` must be at least 0, got {value}.", argument=name)
        for origin in self.cors_origins:
            if origin.count("/") != 2 or not origin.startswith(("http://", "https://")):
                raise OptionError(
                    f"`cors_origins` must be origins such as https://shop.example, got {origin!r}.",
                    argument="cors_origins",
                )

    @property
    def requests_per_minute(self) -> int:
        """The limit on requests; 0 for none."""
        if self.max_requests is not None:
            return self.max_requests
        return 0 if self.on_loopback else DEFAULT_REQUESTS

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
