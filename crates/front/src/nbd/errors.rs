//! The one table from what a volume answers to what an NBD client is told.

use super::wire::{Errno, RequestHeader, command, command_flag};
use volume::Error;

/// The error of a reply, with the sentence for those who can show it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    pub errno: Errno,
    pub sentence: String,
    /// Where in the export the error is, if that is known and inside the request.
    pub at: Option<u64>,
}

impl Refusal {
    /// A request that makes no sense.
    pub fn invalid(sentence: &str) -> Refusal {
        Refusal { errno: Errno::Invalid, sentence: sentence.to_owned(), at: None }
    }

    /// What a client is told when its request failed so.
    pub fn of(error: &Error, request: &RequestHeader) -> Refusal {
        let writes = matches!(request.command, command::WRITE | command::WRITE_ZEROES);
        let unfragmented =
            request.command == command::READ && request.flags & command_flag::DF != 0;
        let errno = match error {
            Error::OutOfRange if writes => Errno::NoSpace,
            Error::OutOfRange | Error::Misaligned => Errno::Invalid,
            // The protocol wants this code for unfragmented reads only.
            Error::TooLong if unfragmented => Errno::Overflow,
            Error::TooLong | Error::UnknownBase => Errno::Invalid,
            Error::NoSpace => Errno::NoSpace,
            Error::ReadOnly => Errno::Permission,
            Error::NotFast => Errno::NotSupported,
            Error::Fenced => Errno::Shutdown,
            Error::Corrupt { .. } | Error::Io(_) => Errno::Io,
        };
        Refusal { errno, sentence: error.to_string(), at: place(error, request) }
    }
}

/// Where the error is, for the only case in which a client can use it: a read's good part.
fn place(error: &Error, request: &RequestHeader) -> Option<u64> {
    let Error::Corrupt { offset } = error else { return None };
    let end = request.offset.checked_add(request.length)?;
    // The damaged block may begin before the request does.
    let at = (*offset).max(request.offset);
    (request.command == command::READ && at < end).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(error: Error, command: u16, flags: u16, errno: Errno) {
        let request = RequestHeader { flags, command, cookie: 1, offset: 8192, length: 8192 };
        let refusal = Refusal::of(&error, &request);
        assert_eq!(refusal.errno, errno, "{error:?} of command {command}");
        assert!(!refusal.sentence.is_empty());
    }

    #[test]
    fn every_error_has_its_code() {
        use command::*;
        check(Error::OutOfRange, READ, 0, Errno::Invalid);
        check(Error::OutOfRange, TRIM, 0, Errno::Invalid);
        check(Error::OutOfRange, CACHE, 0, Errno::Invalid);
        check(Error::OutOfRange, BLOCK_STATUS, 0, Errno::Invalid);
        check(Error::OutOfRange, WRITE, 0, Errno::NoSpace);
        check(Error::OutOfRange, WRITE_ZEROES, 0, Errno::NoSpace);
        check(Error::Misaligned, WRITE, 0, Errno::Invalid);
        check(Error::NoSpace, WRITE, 0, Errno::NoSpace);
        check(Error::ReadOnly, TRIM, 0, Errno::Permission);
        check(Error::NotFast, WRITE_ZEROES, command_flag::FAST_ZERO, Errno::NotSupported);
        check(Error::TooLong, WRITE, 0, Errno::Invalid);
        check(Error::TooLong, READ, 0, Errno::Invalid);
        check(Error::TooLong, READ, command_flag::DF, Errno::Overflow);
        check(Error::Corrupt { offset: 8192 }, READ, 0, Errno::Io);
        check(Error::Fenced, WRITE, 0, Errno::Shutdown);
        check(Error::Io("disk a: I/O error".into()), FLUSH, 0, Errno::Io);
    }

    #[test]
    fn the_place_of_damage_lies_inside_the_read() {
        let read =
            RequestHeader { flags: 0, command: command::READ, cookie: 1, offset: 512, length: 512 };
        let at =
            |offset, request: &RequestHeader| Refusal::of(&Error::Corrupt { offset }, request).at;
        assert_eq!(at(0, &read), Some(512));
        assert_eq!(at(600, &read), Some(600));
        assert_eq!(at(1024, &read), None);
        assert_eq!(at(0, &RequestHeader { command: command::WRITE, ..read }), None);
        assert_eq!(at(0, &RequestHeader { offset: u64::MAX, ..read }), None);
    }
}
