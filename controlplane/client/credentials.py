"""The credentials that a command sends to the control plane, and the certificates that it trusts."""

import os
import ssl
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from controlplane.errors import InvalidInputError
from controlplane.localkey import read_local_key


class ConnectionOptions(Protocol):
    """The options of a command that determine how it connects."""

    @property
    def url(self) -> str | None:
        """The given URL; None for the control plane of this machine."""

    @property
    def api_key_file(self) -> Path | None:
        """A file with an API key."""

    @property
    def ca_file(self) -> Path | None:
        """Certificates to trust instead of the system's."""

    @property
    def client_cert(self) -> Path | None:
        """A client certificate."""

    def folder(self) -> Path:
        """Return the data folder."""


API_KEY_VARIABLE = "TRITONCTL_API_KEY"


@dataclass(frozen=True, slots=True)
class Credentials:
    """The credentials of a connection.

    Attributes:
        api_key: The key; never printed.
        ca_file: Certificates to trust instead of the system's.
        client_cert: Certificate and private key of the client, in one file.
        certificate: The only certificate to trust, whatever its name: that of the ``up`` on this machine.
    """

    api_key: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    client_cert: Path | None = None
    certificate: Path | None = None

    def tls(self) -> ssl.SSLContext:
        """Return the TLS context for connections.

        Raises:
            InvalidInputError: A file cannot be read, or is not a certificate.
        """
        try:
            if self.certificate is not None and self.ca_file is None:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                # Only this certificate is trusted, so checking its name adds nothing.
                context.check_hostname = False
                context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
                context.load_verify_locations(cadata=_first_certificate(self.certificate))
            else:
                context = ssl.create_default_context(cafile=str(self.ca_file) if self.ca_file else None)
            if self.client_cert is not None:
                context.load_cert_chain(self.client_cert)
        except (OSError, ssl.SSLError, ValueError) as error:
            which = self.ca_file or self.client_cert or self.certificate
            raise InvalidInputError(f"{which} is not usable for TLS: {error}") from error
        return context


def credentials(session: ConnectionOptions, url: str) -> Credentials:
    """Return the credentials from this run's options, the environment and, for this machine's ``up``, its data folder.

    The key in a data folder is sent to the control plane that wrote it, and never to an address given by the user.

    Raises:
        InvalidInputError: The key file cannot be read.
    """
    given = _given_key(session.api_key_file)
    if session.url:
        if given and _in_the_clear(url):
            sys.stderr.write(f"warning: the API key is sent unencrypted to {url}; use https://\n")
        return Credentials(given, session.ca_file, session.client_cert)
    from controlplane.client.discovery import UpRecord

    record = UpRecord.read(session.folder())
    return Credentials(
        given or read_local_key(session.folder()),
        session.ca_file,
        session.client_cert,
        record.certificate if record else None,
    )


def _given_key(path: Path | None) -> str | None:
    if path is not None:
        try:
            key = path.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not a text file"
            raise InvalidInputError(f"failed to read the API key file {path}: {reason}", path=str(path)) from error
        if not key:
            raise InvalidInputError(f"the API key file {path} is empty", path=str(path))
    else:
        key = os.environ.get(API_KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        source = f"the file {path}" if path is not None else f"the variable {API_KEY_VARIABLE}"
        raise InvalidInputError(f"the API key contains invalid characters; check {source}")
    return key or None


def _in_the_clear(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname not in {"localhost", "127.0.0.1", "::1"}


def _first_certificate(path: Path) -> str:
    end = "-----END CERTIFICATE-----"
    text = path.read_text("ascii")
    if end not in text:
        raise ValueError("the file contains no certificate")
    return text[text.index("-----BEGIN CERTIFICATE-----") : text.index(end) + len(end)]
