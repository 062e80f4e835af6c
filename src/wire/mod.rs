//! Bytes ⇄ typed views on top of `smoltcp::wire`. No I/O, no clock, no allocation.
