"""Makes the secrets of the compose file, each once: password and URL of the database, and the token of the service."""

import secrets
import sys
from pathlib import Path

database, token = map(Path, sys.argv[1:])


def write(file: Path, text: str) -> None:
    """Whole or not at all; who has the folder mounted may read it, whatever its user."""
    part = file.with_suffix(".part")
    part.write_text(text)
    part.chmod(0o444)
    part.rename(file)
    print(f"made {file}")


if not (database / "url").exists():
    password = secrets.token_urlsafe(24)
    write(database / "password", password)
    write(database / "url", f"postgresql://streamkm:{password}@postgres/streamkm")
if not (token / "token").exists():
    write(token / "token", secrets.token_urlsafe(24))
