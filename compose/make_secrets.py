"""Makes the secrets of the compose file, each once, in its own folder.

Password and URL of the database; the token with all rights; the read-only token, which is also that of the metrics of
consumers; the password of Grafana.
"""

import secrets
import sys
from pathlib import Path

database, token, reader, grafana = map(Path, sys.argv[1:])


def write(file: Path, text: str) -> None:
    """Write a file atomically, readable by any user of a container that mounts the folder."""
    part = file.with_suffix(".part")
    part.write_text(text)
    part.chmod(0o444)
    part.rename(file)
    print(f"made {file}")


if not (database / "url").exists():
    password = secrets.token_urlsafe(24)
    write(database / "password", password)
    write(database / "url", f"postgresql://streamkm:{password}@postgres/streamkm")
for file, prefix in ((token / "token", ""), (reader / "token", "skm_"), (grafana / "password", "")):
    if not file.exists():
        write(file, prefix + secrets.token_urlsafe(32))
