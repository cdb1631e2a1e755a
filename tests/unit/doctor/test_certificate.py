"""Certificates as openssl makes them."""

import base64
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.doctor import certificate
from sidecar.doctor.certificate import Certificate

OPENSSL = shutil.which("openssl")


def made(folder: Path, *options: str, names: str = "DNS:kubernetes,DNS:kubernetes.default.svc,IP:10.96.0.2") -> bytes:
    if not OPENSSL:
        pytest.skip("there is no openssl here to make a certificate with")
    path = folder / "certificate"
    subject = ["-subj", "/CN=kube-apiserver", *(["-addext", f"subjectAltName={names}"] if names else [])]
    new = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "/dev/null"]
    subprocess.run([OPENSSL, "req", *new, "-out", path, *subject, *options], check=True, capture_output=True)
    return base64.b64decode("".join(path.read_text().splitlines()[1:-1]))


def test_names_and_times(tmp_path: Path) -> None:
    read = certificate.read(made(tmp_path, "-days", "30"))
    assert read.names == ("kubernetes", "kubernetes.default.svc", "10.96.0.2")
    now = datetime.now(UTC)
    assert timedelta() <= now - read.not_before < timedelta(minutes=5)
    assert abs(read.not_after - now - timedelta(days=30)) < timedelta(minutes=5)


def test_ipv6_and_names_that_are_none_of_ours(tmp_path: Path) -> None:
    names = "email:someone@example.org,IP:fd00:10:96::2,URI:spiffe://example.org/node,DNS:*.example.org"
    assert certificate.read(made(tmp_path, names=names)).names == ("fd00:10:96::2", "*.example.org")


def test_without_names(tmp_path: Path) -> None:
    assert certificate.read(made(tmp_path, names="")).names == ()


def test_many_names(tmp_path: Path) -> None:
    names = [f"node-{number}.example.org" for number in range(300)]
    assert certificate.read(made(tmp_path, names=",".join(f"DNS:{name}" for name in names))).names == tuple(names)


def test_a_time_behind_2050_is_written_in_another_way(tmp_path: Path) -> None:
    read = certificate.read(made(tmp_path, "-days", str(365 * 40)))
    assert read.not_after.year == datetime.now(UTC).year + 39 or read.not_after.year == datetime.now(UTC).year + 40


@pytest.mark.parametrize(
    ("name", "is_for_service"),
    [
        ("kubernetes", True),
        ("kubernetes.default", True),
        ("kubernetes.default.svc", True),
        ("Kubernetes.Default.svc.example.org.", True),
        ("*.default.svc", True),
        ("*.default.svc.cluster.local", True),
        ("*.default", True),
        ("*", False),
        ("*.svc", False),
        ("*.kubernetes.default.svc", False),
        ("kube*.default.svc", False),
        ("kubernetes.default.svcs", False),
        ("kubernetes.default.example.org", False),
        ("notkubernetes", False),
        ("10.96.0.1", False),
    ],
)
def test_the_names_of_the_api_server(name: str, *, is_for_service: bool) -> None:
    made = Certificate(("other.example.org", name), datetime.now(UTC), datetime.now(UTC))
    assert made.is_for_service() is is_for_service


def test_one_that_is_cut_short(tmp_path: Path) -> None:
    whole = made(tmp_path)
    for length in range(len(whole)):
        with pytest.raises(ValueError, match=r"\w"):
            certificate.read(whole[:length])


@given(st.binary(max_size=200))
def test_what_is_no_certificate(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        certificate.read(data)
