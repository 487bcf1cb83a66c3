"""Ray's token: whoever has it may run code on a cluster, whoever has not is refused."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import grpc
from ray import _raylet
from ray._private.services import canonicalize_bootstrap_address
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
from ray.exceptions import AuthenticationError

from hpo.errors import HpoError

_ANSWER_WITHIN_S = 10.0
_ray: Any = _raylet  # its stubs leave out what is used here


def asks_for_token() -> bool:
    """Whether this side of a cluster's connection uses a token: yes, unless `RAY_AUTH_MODE` says otherwise."""
    return os.environ.get("RAY_AUTH_MODE", "token").lower() == "token"


def find_token() -> str | None:
    """The token as Ray looks for it: `RAY_AUTH_TOKEN`, the file `RAY_AUTH_TOKEN_PATH`, `~/.ray/auth_token`.

    Raises:
        HpoError: A variable names a token that cannot be read or is empty.
    """
    loader = _ray.AuthenticationTokenLoader.instance()
    loader.reset_cache()  # it remembers what it found first
    try:
        if not loader.has_token(ignore_auth_mode=True):
            return None
        return str(loader.get_raw_token(ignore_auth_mode=True))
    except (RuntimeError, AuthenticationError) as error:
        raise HpoError(
            f"the token cannot be read ({str(error).strip().splitlines()[0]})",
            where="RAY_AUTH_TOKEN_PATH",
            remedy="let it name a file that holds the cluster's token, or unset it to use ~/.ray/auth_token",
        ) from error


def authorization(where: str, *, url: str | None = None) -> Mapping[str, str]:
    """What a request to a cluster carries, by header: the token, or nothing where no token is to be used.

    Args:
        where: What the user called the cluster, for errors.
        url: Where the request goes over HTTP.

    Raises:
        HpoError: A token is needed, and there is none; or whoever is on the way to the URL could read it.
    """
    if not asks_for_token():
        return {}
    if url is not None and _is_readable_on_its_way(url):
        raise HpoError(
            "the token would go there unencrypted, and whoever reads it may run code on the cluster",
            where=where,
            remedy=f"make a tunnel, ssh -N -L 8265:127.0.0.1:8265 {urlsplit(url).hostname}, and name "
            "http://127.0.0.1:8265; or name a https:// address",
        )
    token = find_token()
    if token is None:
        raise HpoError(
            "clusters are used with Ray's token, and this machine has none",
            where=where,
            remedy="copy ~/.ray/auth_token from the cluster's head to the same place here (readable by you alone), or "
            "set RAY_AUTH_MODE=disabled if the cluster was started without tokens",
        )
    return {"authorization": f"Bearer {token}"}


def _is_readable_on_its_way(url: str) -> bool:
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname == "localhost":
        return False
    try:
        return not ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:  # a name
        return True


def refusal(where: str) -> HpoError:
    """The error for a cluster that does not let this process in."""
    if not asks_for_token():
        return HpoError(
            "the cluster wants a token, and RAY_AUTH_MODE=disabled says not to send one",
            where=where,
            remedy="unset RAY_AUTH_MODE",
        )
    return HpoError(
        "the cluster refuses this machine's token",
        where=where,
        remedy="copy ~/.ray/auth_token from the cluster's head to the same place here, and look whether RAY_AUTH_TOKEN "
        "or RAY_AUTH_TOKEN_PATH names another one",
    )


def check_admission(address: str) -> None:
    """Return, with Ray set to use its token or none, if the cluster at `address` and this process agree about it.

    Ray itself aborts without a token, tries for 20 s and gives no reason with a wrong one, and waits for ever where
    only one side uses tokens.

    Args:
        address: `host:port` of the cluster's GCS, or `auto`; other kinds of address are not looked at.

    Raises:
        HpoError: They do not agree, or nobody answers.
    """
    where = f"--address {address}"
    headers = authorization(where)
    _ray.Config.initialize("")  # Ray read RAY_AUTH_MODE when it was imported
    if "://" in address:
        return
    found = _gcs_of(address)
    if found is None:
        raise _nobody(where, "no Ray runs on this machine")
    refused, problem = _asked(found, headers)
    if problem:
        raise _nobody(where, problem)
    if refused:
        raise refusal(where)
    if headers and not _asked(found, {})[0]:
        raise HpoError(
            "the cluster lets anyone in: it was started without tokens",
            where=where,
            remedy="start it with RAY_AUTH_MODE=token on every node; or, if nobody else can reach it, set "
            "RAY_AUTH_MODE=disabled here too",
        )


def _gcs_of(address: str) -> str | None:
    try:
        found = canonicalize_bootstrap_address(address)
    except (ValueError, ConnectionError):
        return None
    return None if found is None else str(found)


def _nobody(where: str, problem: str) -> HpoError:
    return HpoError(
        f"no Ray cluster answers ({problem})",
        where=where,
        remedy="start one with `ray up` or `ray start --head`, or leave --address out to use this machine",
    )


def _asked(gcs: str, headers: Mapping[str, str]) -> tuple[bool, str]:
    """Whether the cluster's GCS refuses us; and why it does not answer, or nothing."""
    with grpc.insecure_channel(gcs, options=(("grpc.enable_http_proxy", 0),)) as channel:
        stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        try:
            stub.CheckAlive(
                gcs_service_pb2.CheckAliveRequest(), timeout=_ANSWER_WITHIN_S, metadata=tuple(headers.items())
            )
        except grpc.RpcError as error:
            refused = error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
            return refused, "" if refused else f"{gcs}: {error.details()}"
    return False, ""
