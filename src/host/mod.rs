//! Host side sockets: how they are made and what their errors mean to the guest. They are held by `runtime`.

pub mod address;
pub mod budget;
pub mod datagram;
pub mod echo;
pub mod gather;
pub mod peers;
pub mod ports;
pub mod published;
pub mod resolver;
pub mod stream;
