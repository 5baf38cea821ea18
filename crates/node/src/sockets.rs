//! Opening the places where clients and administrators come in.

use rustix::{
    fs::{Gid, Mode, chown},
    process::umask,
};
use std::{
    fs,
    io::{self, ErrorKind},
    net::{SocketAddr, TcpListener},
    os::unix::{
        fs::FileTypeExt,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// How long a socket that is in the way may go on answering.
const CLEAR_PATIENCE: Duration = Duration::from_millis(500);
/// How often it is tried.
const CLEAR_INTERVAL: Duration = Duration::from_millis(10);

/// Opens a Unix socket with this mode and group. What a dead process left at the path is replaced,
/// a live one's socket is refused. The error is one sentence. Only while the process has one
/// thread: the file mode mask belongs to all.
pub fn open_unix(path: &Path, mode: u32, group: Option<u32>) -> Result<UnixListener, String> {
    clear(path)?;
    let shown = path.display();
    // The mode is right from the first moment, not only after a chmod.
    let old_mask = umask(Mode::from_raw_mode(0o777 & !mode));
    let bound = UnixListener::bind(path);
    umask(old_mask);
    let listener = bound.map_err(|error| {
        format!("cannot make the socket {shown}: {error}; run sheep as the directory's owner")
    })?;
    let listening = listener.set_nonblocking(true);
    listening.map_err(|error| format!("cannot use the socket {shown}: {error}"))?;
    if let Some(group) = group {
        chown(path, None, Some(Gid::from_raw(group))).map_err(|error| {
            format!(
                "cannot give {shown} to group {group}: {error}; run sheep as root or as a member \
                 of the group"
            )
        })?;
    }
    Ok(listener)
}

/// Removes what a dead process left at the path.
fn clear(path: &Path) -> Result<(), String> {
    let shown = path.display();
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("cannot look at {shown}: {error}")),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(format!("{shown} is no socket; move it away, sheep needs its name"));
        }
        Ok(_) => {}
    }
    // A daemon that was killed a moment ago may not have lost all of its sockets yet.
    let until = Instant::now() + CLEAR_PATIENCE;
    loop {
        match UnixStream::connect(path) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                return fs::remove_file(path)
                    .map_err(|error| format!("cannot replace the old socket {shown}: {error}"));
            }
            _ if Instant::now() < until => thread::sleep(CLEAR_INTERVAL),
            _ => return Err(format!("another process listens at {shown}; stop it first")),
        }
    }
}

/// Opens a loopback address; `setting` is named in the sentence if that fails.
pub fn open_tcp(address: SocketAddr, setting: &str) -> Result<TcpListener, String> {
    assert!(address.ip().is_loopback(), "others are refused with the settings");
    let open = || -> io::Result<TcpListener> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    open().map_err(|error| {
        let remedy = match error.kind() {
            ErrorKind::AddrInUse => "stop who uses it, or choose another port",
            ErrorKind::PermissionDenied => "choose a port of 1024 or above",
            _ => "choose another address",
        };
        format!("cannot listen on {address} (--{setting}): {error}; {remedy}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_refused() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let path = directory.path().join("x.sock");
        let first = open_unix(&path, 0o600, None).expect("opened");
        let error = open_unix(&path, 0o600, None).expect_err("alive");
        assert!(error.contains("another process listens"), "{error}");
        drop(first);
        let second = open_unix(&path, 0o660, None).expect("replaced");
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o660);
        drop(second);
        fs::remove_file(&path).expect("removed");
        fs::write(&path, b"thesis").expect("written");
        let error = open_unix(&path, 0o600, None).expect_err("a file");
        assert!(error.contains("is no socket"), "{error}");
        assert_eq!(fs::read(&path).expect("kept"), b"thesis");
    }

    #[test]
    fn a_port_in_use_is_named_with_its_setting() {
        let first = open_tcp("127.0.0.1:0".parse().expect("an address"), "nbd-listen");
        let address = first.as_ref().expect("opened").local_addr().expect("bound");
        let error = open_tcp(address, "nbd-listen").expect_err("in use");
        assert!(error.contains("--nbd-listen") && error.contains("another port"), "{error}");
    }
}
