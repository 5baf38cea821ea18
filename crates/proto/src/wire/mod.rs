//! Frames between nodes as `docs/formats/wire.md` draws them: made from values, and bytes parsed
//! into values that cannot be wrong.
//!
//! A receiver parses the header first ([`Header::parse`]): it says how much follows, within the
//! bounds of its kind. Body and payload are then checked ([`Header::verify`]) and given their
//! meaning by [`request::decode`], [`reply::decode`], [`Hello::decode`] or the functions of
//! [`note`]. What goes out is made by the `put_` functions beside them. Nothing here holds state:
//! the link does (crate `link`).

mod copying;
mod header;
mod hello;
pub mod note;
mod records;
pub mod reply;
pub mod request;
#[cfg(test)]
mod tests;

pub use header::{FrameError, HEADER_BYTES, Header, Kind, Seal};
pub use hello::{Era, Hello, Identity, VERSION, connection_key};
