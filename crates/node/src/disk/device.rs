//! The one call on block devices that has no safe form elsewhere: give space back.
#![allow(unsafe_code)]

use rustix::io::Errno;
use std::{
    fs::File,
    os::fd::{AsRawFd, RawFd},
};

/// `BLKDISCARD` of linux/fs.h: `_IO(0x12, 119)`.
const BLKDISCARD: libc::c_ulong = 0x1277;

/// Tells the device that the range is not needed any more. It reads as zeros or as before
/// afterwards. `EOPNOTSUPP` or `ENOTTY` where the device has no such call.
pub fn discard(device: &File, offset: u64, length: u64) -> Result<(), Errno> {
    let range: [u64; 2] = [offset, length];
    let fd: RawFd = device.as_raw_fd();
    // SAFETY: `fd` is open for as long as `device` is borrowed. BLKDISCARD reads two u64 at the
    // pointer, during the call only, and `range` is two initialised u64 that outlive it. On a file
    // that is no block device the number is unknown and the kernel touches nothing (ENOTTY).
    let result = unsafe { libc::ioctl(fd, BLKDISCARD as _, range.as_ptr()) };
    if result == 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}
