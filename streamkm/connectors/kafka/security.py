"""Validates the TLS and SASL settings of a Kafka client before it connects."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kafka.net.sasl import SASL_MECHANISMS  # type: ignore[import-untyped]

from streamkm.connectors.kafka.connection_check import PASSWORD_MECHANISMS
from streamkm.errors import SettingsError
from streamkm.values import CLIENT_ALIASES

_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")


def resolve_security(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Validate the TLS and SASL settings of a client, and create its TLS context.

    Certificates and keys are read here, once: kafka-python would read them at each connection, and not report errors.

    Returns
    -------
    dict
        The settings, with ``ssl_context`` where TLS is used.

    Raises
    ------
    SettingsError
        A protocol or mechanism is unknown, a required setting is missing, or a file is not valid.
    """
    out = dict(settings)
    protocol = str(out.get("security_protocol") or "PLAINTEXT").upper()
    if protocol not in _PROTOCOLS:
        raise SettingsError(
            f"{protocol!r} is not a security protocol of Kafka",
            where="security.protocol",
            hint=f"Known: {', '.join(_PROTOCOLS)}",
        )
    out["security_protocol"] = protocol
    _check_login(out, protocol)
    if protocol.endswith("SSL"):
        out["ssl_context"] = out.get("ssl_context") or _ssl_context(out)
    return out


def _check_login(settings: Mapping[str, Any], protocol: str) -> None:
    mechanism = settings.get("sasl_mechanism")
    if not protocol.startswith("SASL"):
        unused = [name for name in ("sasl_plain_username", "sasl_plain_password") if settings.get(name)]
        if unused or mechanism:
            raise SettingsError(
                f"a login is given, and {protocol} has none",
                where="security.protocol",
                hint="Give security.protocol=SASL_SSL, or SASL_PLAINTEXT where the network is trusted",
            )
        return
    if mechanism not in SASL_MECHANISMS:
        problem = f"{mechanism!r} is not a mechanism of kafka-python" if mechanism else "there is no mechanism"
        raise SettingsError(
            f"{problem} for {protocol}", where="sasl.mechanism", hint=f"Known: {', '.join(sorted(SASL_MECHANISMS))}"
        )
    if mechanism in PASSWORD_MECHANISMS:
        for key, name in (("sasl_plain_username", "sasl.username"), ("sasl_plain_password", "sasl.password")):
            if not settings.get(key):
                raise SettingsError(f"it is missing, and {mechanism} requires it", where=name)
    if mechanism == "OAUTHBEARER" and not settings.get("sasl_oauth_token_provider"):
        raise SettingsError(
            "OAUTHBEARER requires a token provider object, which cannot be given as text",
            where="sasl.oauth.token.provider",
            hint="Use another mechanism",
        )
    if mechanism == "GSSAPI" and find_spec("gssapi") is None:
        raise SettingsError("GSSAPI requires the package gssapi", where="sasl.mechanism", hint="pip install gssapi")


def _ssl_context(settings: Mapping[str, Any]) -> ssl.SSLContext:
    """Create the TLS context that kafka-python would create."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = settings.get("ssl_check_hostname") is not False
    authority, certificate, key, revoked = (
        _checked_file(settings, name) for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_crlfile")
    )
    if key and not certificate:
        raise SettingsError("there is a key without a certificate", where="ssl.certificate.location")
    where = "ssl.ca.location"
    try:
        if authority:
            context.load_verify_locations(authority)
        else:
            context.load_default_certs()
        if certificate:
            where = "ssl.key.location" if key else "ssl.certificate.location"
            # Without a password OpenSSL would prompt at the terminal.
            context.load_cert_chain(certificate, key, str(settings.get("ssl_password") or ""))
        if revoked:
            where = "ssl.crl.location"
            context.load_verify_locations(revoked)
            context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        raise SettingsError(
            f"it cannot be used ({reason})", where=where, hint="It must be PEM, and a key must match its certificate"
        ) from error
    return context


def _checked_file(settings: Mapping[str, Any], name: str) -> str | None:
    file = settings.get(name)
    if not file:
        return None
    try:
        with Path(file).open("rb"):
            return str(file)
    except OSError as error:
        shown = {ours: theirs for theirs, ours in CLIENT_ALIASES.items()}.get(name, name)
        raise SettingsError(
            f"{file} cannot be read ({error.strerror})", where=shown.replace("_", "."), hint="Give an existing file"
        ) from error
