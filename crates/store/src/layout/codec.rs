//! Little-endian integers in and out of bytes.

/// Takes integers off the front of some bytes; `None` when they run out.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes }
    }

    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.bytes.split_at_checked(count)?;
        self.bytes = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.bytes.split_first_chunk::<N>()?;
        self.bytes = tail;
        Some(*head)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn u128(&mut self) -> Option<u128> {
        self.array().map(u128::from_le_bytes)
    }

    /// A block address.
    pub(crate) fn u40(&mut self) -> Option<u64> {
        let [a, b, c, d, e] = self.array::<5>()?;
        Some(u64::from_le_bytes([a, b, c, d, e, 0, 0, 0]))
    }
}

/// Puts integers behind some bytes.
pub(crate) trait Put {
    fn put(&mut self, bytes: &[u8]);

    fn put_u8(&mut self, value: u8) {
        self.put(&[value]);
    }

    fn put_u16(&mut self, value: u16) {
        self.put(&value.to_le_bytes());
    }

    fn put_u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    fn put_u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }

    fn put_u128(&mut self, value: u128) {
        self.put(&value.to_le_bytes());
    }

    /// A block address.
    fn put_u40(&mut self, value: u64) {
        assert!(value <= super::ADDRESS_MAX, "an address has 5 bytes");
        self.put(&value.to_le_bytes()[..5]);
    }
}

impl Put for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Writes into memory of fixed size; what is not written stays.
pub(crate) struct Cursor<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a mut [u8]) -> Cursor<'a> {
        Cursor { bytes, at: 0 }
    }
}

impl Put for Cursor<'_> {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }
}

/// Computes the checksum of a finished record and puts it in its place.
pub(crate) fn seal(bytes: &mut [u8], at: usize) -> u64 {
    let sum = proto::crc64_around(bytes, at);
    bytes[at..at + 8].copy_from_slice(&sum.to_le_bytes());
    sum
}

/// Whether the checksum at its place is right.
pub(crate) fn is_sealed(bytes: &[u8], at: usize) -> bool {
    bytes.get(at..at + 8).is_some_and(|sum| sum == proto::crc64_around(bytes, at).to_le_bytes())
}
