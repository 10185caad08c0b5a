"""TLS of the REST API and of the agent: converts settings into uvicorn's options."""

import ssl
from typing import Any

from controlplane.errors import InvalidInputError
from controlplane.settings import TlsSettings


def tls_options(settings: TlsSettings, group: str = "api") -> dict[str, Any]:
    """Return uvicorn's options; none for plain HTTP.

    Args:
        settings: The settings.
        group: The group that they belong to, for error messages.

    Raises:
        InvalidInputError: A file is missing or invalid, or the key does not match the certificate.
    """
    if settings.cert_file is None:
        if settings.key_file is not None or settings.client_ca_file is not None:
            raise InvalidInputError(
                f"TLS needs a certificate: set {group}.tls.cert_file (CONTROLPLANE_{group.upper()}__TLS__CERT_FILE)"
            )
        return {}
    password = settings.key_password.get_secret_value() if settings.key_password else ""
    options: dict[str, Any] = {
        "ssl_certfile": str(settings.cert_file),
        "ssl_keyfile": str(settings.key_file) if settings.key_file else None,
        "ssl_keyfile_password": password,
    }
    if settings.client_ca_file is not None:
        options |= {"ssl_ca_certs": str(settings.client_ca_file), "ssl_cert_reqs": ssl.CERT_REQUIRED}
    _try(settings, password)
    return options


def _try(settings: TlsSettings, password: str) -> None:
    """Detect errors before startup that uvicorn would report later with a traceback."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # With an empty password, OpenSSL would prompt for one at the terminal; a function that returns it avoids the
        # prompt.
        context.load_cert_chain(str(settings.cert_file), settings.key_file, lambda: password)
        if settings.client_ca_file is not None:
            context.load_verify_locations(str(settings.client_ca_file))
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(str(one) for one in (settings.cert_file, settings.key_file, settings.client_ca_file) if one)
        reason = error.strerror or type(error).__name__
        raise InvalidInputError(f"failed to set up TLS with {files}: {reason}") from error
