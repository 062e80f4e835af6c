//! Host side sockets: TCP, UDP, ping, listeners, name resolution.
