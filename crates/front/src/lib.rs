//! Fronts: what speaks to clients. Each turns the bytes of one protocol into `volume::Request`s
//! and completions back into bytes. Today that is [`nbd`].
//!
//! It must never open a socket, read a clock or keep anything that outlives a connection: a driver
//! hands in bytes and the time, and carries out the effects. Its main type is [`nbd::Connection`]:
//! made when a client connects, it negotiates, serves, and ends with [`nbd::Effect::Close`].
#![forbid(unsafe_code)]

pub mod nbd;
