"""Exit with status 0 if the URL in STREAMKM_HEALTH responds with 200: the health check of a container without curl."""

import os
import sys
import urllib.error
import urllib.request

URL = os.environ.get("STREAMKM_HEALTH", "http://127.0.0.1:8000/livez")

try:
    with urllib.request.urlopen(URL, timeout=4) as answer:
        print(answer.read(1000).decode(errors="replace"))
except urllib.error.HTTPError as error:
    sys.exit(f"{URL}: {error.code} {error.read(1000).decode(errors='replace')}")
except OSError as error:
    sys.exit(f"{URL}: {error}")
