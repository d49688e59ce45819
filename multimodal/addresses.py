"""Which network addresses a fetched URL may lead to, and what a host name stands for."""

import ipaddress
import queue
import socket
import threading

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_REFUSED = tuple(
    ipaddress.ip_network(text)
    for text in (
        "192.0.0.0/24",  # protocol assignments, and the metadata server of one cloud
        "168.63.129.16/32",  # public by its number, but the host agent of one cloud
        "2001::/32",  # Teredo carries an IPv4 address inside
        "2002::/16",  # and so does 6to4
        "fec0::/10",  # site-local
    )
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def is_public(address: Address) -> bool:
    """False for loopback, private, link-local, multicast, reserved and the like.

    IPv4 addresses mapped or translated into IPv6 are judged as what they lead to.
    """
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    if address.is_multicast or address.is_reserved or not address.is_global:
        return False
    return not any(address.version == net.version and address in net for net in _REFUSED)


def resolve(host: str, port: int, timeout_s: float) -> list[Address]:
    """Every address of `host`, a name or any spelling of an address, in the system's order.

    Empty where the name is unknown, or not resolved within `timeout_s`: the system's resolver
    takes no timeout, so it runs on a thread that is left behind.
    """
    answer: queue.SimpleQueue[list[Address]] = queue.SimpleQueue()
    thread = threading.Thread(
        target=lambda: answer.put(_look_up(host, port)), name="quire-resolve", daemon=True
    )
    thread.start()
    try:
        return answer.get(timeout=max(timeout_s, 0.0))
    except queue.Empty:
        return []


def _look_up(host: str, port: int) -> list[Address]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    texts = dict.fromkeys(str(entry[4][0]) for entry in found)
    return [ipaddress.ip_address(text) for text in texts]
