"""``streamkm``, killed by SIGKILL after events were delivered and before that is recorded."""

from __future__ import annotations

import consumers.notify
from consumers.cli import main
from streamkm.stores import open_store
from streamkm.testing import KillAtCall

if __name__ == "__main__":
    consumers.notify.open_store = lambda url, **how: KillAtCall(open_store(url, **how), "advance_delivery", 2)  # type: ignore[assignment]
    main()
