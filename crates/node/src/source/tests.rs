//! The threads that read sources, with files and with servers that are scripted here.

use super::*;
use mio::{Events, Poll, Token};
use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixListener,
    path::Path,
};
use volume::SourceAnswer;

const BYTES: u64 = 10_000;

/// Sources, and the poll that is woken.
struct Bench {
    sources: Sources,
    poll: Poll,
    next: u64,
}

impl Bench {
    fn new() -> Bench {
        let poll = Poll::new().expect("a poll");
        let waker = Arc::new(Waker::new(poll.registry(), Token(0)).expect("a waker"));
        Bench { sources: Sources::new(waker, None), poll, next: 0 }
    }

    /// Asks, and waits for the answer.
    fn ask(&mut self, address: &str, wanted: SourceWanted) -> Result<SourceReply, String> {
        self.next += 1;
        let token = SourceId(self.next);
        let request = SourceRequest { address: address.to_string(), wanted };
        if let Some((answered, result)) = self.sources.ask(token, request) {
            assert_eq!(answered, token);
            return result;
        }
        let mut events = Events::with_capacity(4);
        let until = Instant::now() + Duration::from_secs(30);
        while Instant::now() < until {
            self.poll.poll(&mut events, Some(Duration::from_secs(30))).expect("woken");
            if let Some((answered, result)) = self.sources.take() {
                assert_eq!(answered, token);
                return result;
            }
        }
        panic!("no answer");
    }

    fn read(&mut self, address: &str, offset: u64, length: u64) -> Result<Vec<u8>, String> {
        match self.ask(address, SourceWanted::Read { bytes: BYTES, offset, length })? {
            SourceReply::Answer(SourceAnswer::Data(data)) => Ok(data.as_slice().to_vec()),
            other => panic!("{other:?}"),
        }
    }
}

fn content() -> Vec<u8> {
    (0..BYTES).map(|at| (at / 7 % 251) as u8 + 1).collect()
}

fn file(directory: &Path) -> String {
    let path = directory.join("source.raw");
    fs::write(&path, content()).expect("written");
    path.to_str().expect("UTF-8").to_string()
}

#[test]
fn a_file_is_read_with_zeros_behind_its_end_and_not_when_its_size_is_another() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = file(directory.path());
    let mut bench = Bench::new();
    match bench.ask(&format!("file://{path}"), SourceWanted::Open) {
        Ok(SourceReply::Opened { bytes: BYTES, own_export: None }) => {}
        other => panic!("{other:?}"),
    }
    let mut wanted = content();
    wanted.resize(12288, 0);
    assert_eq!(bench.read(&path, 0, BYTES), Ok(wanted.clone()));
    assert_eq!(bench.read(&path, 8192, BYTES - 8192).as_deref(), Ok(&wanted[8192..]));
    let map = SourceWanted::Map { bytes: BYTES, offset: 0, length: BYTES };
    match bench.ask(&path, map) {
        Ok(SourceReply::Answer(SourceAnswer::Map(runs))) => {
            assert_eq!(runs, [(3, proto::BlockState::Data)]);
        }
        other => panic!("{other:?}"),
    }
    let beyond = bench.read(&path, 8192, 4096).expect_err("beyond its end");
    assert_eq!(beyond, "it does not reach so far");
    for other in [BYTES - 1, BYTES + 1] {
        let file = fs::OpenOptions::new().write(true).open(&path).expect("opened");
        file.set_len(other).expect("another size");
        let error = bench.read(&path, 0, 4096).expect_err("it is another one");
        let told = format!("it has {other} bytes now and had {BYTES} when the volume was made");
        assert!(error.starts_with(&told), "{error}");
    }
    fs::remove_file(&path).expect("removed");
    fs::write(&path, content()).expect("written");
    assert_eq!(bench.read(&path, 0, 4096).as_deref(), Ok(&wanted[..4096]));
}

#[test]
fn what_is_no_source_is_refused_in_words() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).to_str().expect("UTF-8").to_string();
    rustix::fs::mkfifoat(rustix::fs::CWD, path("pipe"), rustix::fs::Mode::RWXU).expect("a pipe");
    let deaf = UnixListener::bind(path("deaf")).expect("a socket");
    drop(deaf);
    let unix = |name: &str| format!("nbd+unix:///e?socket={}", path(name));
    let mut bench = Bench::new();
    for (address, wanted) in [
        (path(""), "it is neither a regular file nor a block device"),
        (path("pipe"), "it is neither a regular file nor a block device"),
        (path("nothing"), "no such file or socket"),
        (unix("nothing"), "no such file or socket"),
        (unix("deaf"), "connection refused"),
        ("nbd://127.0.0.1:1/e".to_string(), "connection refused"),
        ("nbds://127.0.0.1/e".to_string(), "NBD over TLS is not built yet"),
        ("sheep".to_string(), "it is neither an NBD URI"),
    ] {
        let error = bench.ask(&address, SourceWanted::Open).expect_err(&address);
        assert!(error.starts_with(wanted), "{address}: {error}");
    }
}

/// A server that greets, lets itself be attached, and answers the first read with its script.
fn serve(socket: &Path, script: impl Fn(&mut dyn Write, [u8; 8]) + Send + 'static) {
    let listener = UnixListener::bind(socket).expect("a socket");
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut attach = || -> std::io::Result<()> {
                stream.write_all(b"NBDMAGICIHAVEOPT\x00\x03")?;
                stream.read_exact(&mut [0; 4])?;
                loop {
                    let mut head = [0; 16];
                    stream.read_exact(&mut head)?;
                    let length = u32::from_be_bytes(head[12..].try_into().expect("four"));
                    stream.read_exact(&mut vec![0; length as usize])?;
                    let mut answer = |kind: u32, body: &[u8]| {
                        let mut bytes = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
                        bytes.extend(&head[8..12]);
                        bytes.extend(kind.to_be_bytes());
                        bytes.extend((body.len() as u32).to_be_bytes());
                        bytes.extend(body);
                        stream.write_all(&bytes)
                    };
                    if head[11] != 7 {
                        answer((1 << 31) + 1, &[])?;
                        continue;
                    }
                    let mut info = vec![0, 0];
                    info.extend(BYTES.to_be_bytes());
                    info.extend([0, 3]);
                    answer(3, &info)?;
                    answer(1, &[])?;
                    let mut request = [0; 28];
                    stream.read_exact(&mut request)?;
                    script(&mut stream, request[8..16].try_into().expect("eight"));
                    // Until the client goes.
                    let mut rest = [0; 64];
                    while stream.read(&mut rest)? > 0 {}
                    return Ok(());
                }
            };
            let _ = attach();
        }
    });
}

fn simple(code: u32, cookie: [u8; 8], content: &[u8]) -> Vec<u8> {
    let mut bytes = 0x6744_6698_u32.to_be_bytes().to_vec();
    bytes.extend(code.to_be_bytes());
    bytes.extend(cookie);
    bytes.extend(content);
    bytes
}

#[test]
fn a_server_is_read_and_its_errors_and_nonsense_are_told_and_not_taken_for_data() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut bench = Bench::new();
    type Script = fn(&mut dyn Write, [u8; 8]);
    let honest: Script = |stream, cookie| {
        let _ = stream.write_all(&simple(0, cookie, &content()[4096..8192]));
    };
    let failing: Script = |stream, cookie| {
        let _ = stream.write_all(&simple(5, cookie, &[]));
    };
    let mad: Script = |stream, cookie| {
        let _ = stream.write_all(&simple(0, [cookie[0], 1, 2, 3, 4, 5, 6, 7], &[0; 4096]));
    };
    let table: [(&str, Script, Result<(), &str>); 3] = [
        ("honest", honest, Ok(())),
        ("failing", failing, Err("I/O error")),
        ("mad", mad, Err("it sent nonsense (a reply to no request)")),
    ];
    for (name, script, wanted) in table {
        let socket = directory.path().join(name);
        serve(&socket, script);
        let address = format!("nbd+unix:///e?socket={}", socket.display());
        let found = bench.read(&address, 4096, 4096);
        match wanted {
            Ok(()) => assert_eq!(found.as_deref(), Ok(&content()[4096..8192])),
            Err(told) => {
                let error = found.expect_err(name);
                assert!(error.to_lowercase().contains(&told.to_lowercase()), "{name}: {error}");
            }
        }
    }
}
