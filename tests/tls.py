"""Certificates and settings of servers that let in only those they know."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path


def make_certificate(directory: Path) -> Path:
    """A self-signed certificate for this machine and its key: `cert.pem`, `key.pem`, and `both.pem` in `directory`."""
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout key.pem -out cert.pem"
    subject = ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    subprocess.run([*command.split(), *subject], cwd=directory, check=True, capture_output=True)
    (directory / "both.pem").write_text((directory / "key.pem").read_text() + (directory / "cert.pem").read_text())
    return directory


def kafka_settings(port: int, certificate: Path, passwords: Mapping[str, str]) -> dict[str, str]:
    """Of an Apache Kafka that wants TLS and a password, of these users, each with theirs; `admin` is one of them."""
    address = f"SASL_SSL://127.0.0.1:{port}"
    module = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    users = " ".join(f'user_{user}="{password}"' for user, password in passwords.items())
    return {
        "listeners": f"{address},CONTROLLER://127.0.0.1:{port + 1}",
        "advertised.listeners": address,
        "security.inter.broker.protocol": "SASL_SSL",
        "sasl.enabled.mechanisms": "PLAIN",
        "sasl.mechanism.inter.broker.protocol": "PLAIN",
        # Whoever is refused is told and cut off in one go, which clients must not take for a mere loss.
        "connection.failed.authentication.delay.ms": "0",
        "listener.name.sasl_ssl.plain.sasl.jaas.config": (
            f'{module} username="admin" password="{passwords["admin"]}" {users};'
        ),
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(certificate / "both.pem"),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(certificate / "cert.pem"),
    }


def redis_settings(port: int, certificate: Path) -> dict[str, str]:
    """Of a Redis that speaks TLS on `port`, beside what it is asked on its own port."""
    settings = {"tls-port": str(port), "tls-cert-file": str(certificate / "cert.pem")}
    settings |= {"tls-key-file": str(certificate / "key.pem"), "tls-ca-cert-file": str(certificate / "cert.pem")}
    return settings | {"tls-auth-clients": "no"}
