"""Tests against other people's WireGuard: real TUN devices and real sockets in network namespaces."""
