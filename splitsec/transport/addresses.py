"""Addresses of parties: `tcp://HOST:PORT`."""

from __future__ import annotations

import re

from splitsec.errors import AddressError

_ADDRESS = re.compile(r"tcp://(?P<host>[^:/\s]+):(?P<port>[^:/\s]+)\Z")
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?\Z")
MOST_PORT = 65535


def host_and_port(address: str, *, listen: bool = False, what: str = "the address") -> tuple[str, str]:
    """Return the two parts of an address.

    Args:
        listen: it is one to listen on, where host and port may be `*`, for all interfaces and a free port.
        what: what the address is called in an error, such as `server`.

    Raises:
        AddressError: it is no address; says what is wrong, and what an address looks like.
    """
    said = f"{what} '{address}'"
    if "://" not in address:
        raise AddressError(f"{said} does not say how: write tcp:// before it, such as tcp://{address or 'HOST:PORT'}")
    scheme = address.split("://", 1)[0]
    if scheme != "tcp":
        raise AddressError(f"{said} begins with {scheme}://; parties are reached by tcp://HOST:PORT alone")
    if "[" in address or address.count(":") > 2:
        raise AddressError(f"{said} looks like one of IPv6, which is not supported; write a name or an IPv4 address")
    match = _ADDRESS.match(address)
    if match is None:
        raise AddressError(f"{said} is not tcp://HOST:PORT, such as tcp://server.example:5555")
    host, port = match["host"], match["port"]
    if not (listen and host == "*") and not _is_host(host):
        choices = "a name or an IPv4 address" + (", or * for all interfaces" if listen else "")
        raise AddressError(f"{said} has the host '{host}', which cannot be; write {choices}")
    if not (listen and port == "*") and not (port.isascii() and port.isdigit() and 1 <= int(port) <= MOST_PORT):
        choices = f"a number from 1 to {MOST_PORT}" + (", or * for a free one" if listen else "")
        raise AddressError(f"{said} has the port '{port}', which cannot be; write {choices}")
    return host, port


def _is_host(host: str) -> bool:
    if len(host) > 253 or not _HOST.match(host):
        return False
    if all(part.isdigit() for part in host.rstrip(".").split(".")):
        parts = host.split(".")
        return len(parts) == 4 and all(int(part) <= 255 for part in parts)
    return True
