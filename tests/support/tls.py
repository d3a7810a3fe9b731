"""TLS before a server that speaks none: an authority of our own, and a proxy that ends TLS."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import select
import socket
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_SSL_REQUEST = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")
_GSS_REQUEST = (8).to_bytes(4, "big") + (80877104).to_bytes(4, "big")


@dataclass(frozen=True, slots=True)
class Authority:
    """Files: the authority's certificate, and a server's (with its key) for 127.0.0.1."""

    certificate: Path
    server: Path


def authority(folder: Path) -> Authority:
    """A new authority that nobody else trusts, good for a day."""
    folder.mkdir(parents=True)
    top, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = _signed("Test authority", top, None, top)
    leaf = _signed("127.0.0.1", own, root, top)
    pem = serialization.Encoding.PEM
    found = Authority(folder / "ca.pem", folder / "server.pem")
    found.certificate.write_bytes(root.public_bytes(pem))
    found.server.touch(0o600)
    found.server.write_bytes(
        own.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + leaf.public_bytes(pem)
    )
    return found


def _signed(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    signer: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    public = signer.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        .add_extension(_usage(ca=issuer is None), critical=True)
    )
    if issuer:
        address = x509.IPAddress(ipaddress.ip_address(name))
        builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
    return builder.sign(signer, hashes.SHA256())


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


class TlsProxy:
    """Ends TLS at ``127.0.0.1:port`` and passes what is inside to ``upstream``.

    ``postgres``: TLS begins as PostgreSQL's clients begin it, after a request in the clear. A
    client that asks for none is hung up on. ``handshakes`` counts those that came to an end.
    """

    def __init__(self, upstream: tuple[str, int], owner: Authority, *, postgres: bool) -> None:
        self.upstream = upstream
        self.handshakes = 0
        self._postgres = postgres
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(owner.server)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.02)
        self.port: int = self._listener.getsockname()[1]
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> TlsProxy:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(client,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        client.settimeout(10)
        with client, contextlib.suppress(OSError):
            if self._postgres and not _asked_for_tls(client):
                return
            with (
                self._context.wrap_socket(client, server_side=True) as inside,
                socket.create_connection(self.upstream, timeout=10) as server,
            ):
                self.handshakes += 1
                self._pass(inside, server)

    def _pass(self, inside: ssl.SSLSocket, server: socket.socket) -> None:
        """One thread for both ways: an SSL object may not be used by two at once."""
        while not self._over.is_set():
            ready: list[socket.socket] = [inside] if inside.pending() else []
            ready = ready or select.select([inside, server], [], [], 0.02)[0]
            for source in ready:
                data = source.recv(65536)
                if not data:
                    return
                (server if source is inside else inside).sendall(data)


def _asked_for_tls(client: socket.socket) -> bool:
    asked = client.recv(8, socket.MSG_WAITALL)
    if asked == _GSS_REQUEST:
        client.sendall(b"N")
        asked = client.recv(8, socket.MSG_WAITALL)
    if asked == _SSL_REQUEST:
        client.sendall(b"S")
    return asked == _SSL_REQUEST
