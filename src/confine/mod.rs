//! What the network process gives up, in stages.
