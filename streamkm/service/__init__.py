"""The HTTP service over a store. It reads what consumers wrote and never meets one."""

from streamkm.service.app import ServiceOptions, create_app

__all__ = ["ServiceOptions", "create_app"]
