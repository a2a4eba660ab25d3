"""The processes of a server that somebody else started on this machine, so that their processor time can be read."""

import contextlib
import ipaddress
import socket

import psutil

from benchmarks.peer_server import Running
from benchmarks.served import is_worker


def find_server(host: str, port: int) -> Running | None:
    """Return the server behind an address, or None where it runs elsewhere or its processes can't be seen.

    What listens may only be a gate, such as a proxy's or a container's: it has to have workers of BentoML.
    """
    if not _is_here(host):
        return None
    holders = [process for process in psutil.process_iter() if _listens(process, port)]
    ids = {process.pid for process in holders}
    for process in holders:
        with contextlib.suppress(psutil.Error):
            # Workers inherit the socket: the first of the family is the server.
            if process.ppid() not in ids and any(map(is_worker, process.children())):
                return Running(port, process)
    return None


def _is_here(host: str) -> bool:
    own = {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return any(ipaddress.ip_address(address.partition("%")[0]).is_loopback or address in own for address in found)


def _listens(process: psutil.Process, port: int) -> bool:
    try:
        connections = process.net_connections("tcp")
    except psutil.Error:
        return False  # another user's, or one that has ended
    return any(connection.status == psutil.CONN_LISTEN and connection.laddr.port == port for connection in connections)
