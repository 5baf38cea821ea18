//! Ends of connections one by one, and random histories of two links and of hostile peers.

mod random;
