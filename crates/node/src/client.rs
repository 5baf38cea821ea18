//! The asking side of the API: one request over the admin socket, with errors in sentences.

use crate::api;
use engine::admin::{AdminError, AdminReply, AdminRequest};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, StatusCode, body::Bytes, header};
use hyper_util::rt::TokioIo;
use proto::limits::{ADMIN_ANSWER_MS_MAX, ADMIN_QUESTION_MS_MAX, ADMIN_REPLY_BYTES_MAX};
use std::{
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::net::UnixStream;

/// How much longer than the daemon a client waits for its answer, so that the daemon's own
/// sentence about a deadline arrives.
const ANSWER_MARGIN: Duration = Duration::from_secs(10);

/// Asks one daemon. Holds no connection: each request makes its own.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

/// Why there is no reply. Each prints as one sentence with cause and remedy.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Start the daemon: nobody listens there.
    #[error("{0}")]
    NotRunning(String),
    /// Ask as another user.
    #[error("{0}")]
    Permission(String),
    /// The daemon understood and says no.
    #[error("{0}")]
    Refused(#[from] AdminError),
    /// The conversation failed half way: whether the request took effect is unknown.
    #[error("{0}")]
    Broken(String),
}

impl Client {
    /// A client of the daemon that listens on this admin socket (see [`api::admin_socket`]).
    pub fn new(socket: impl Into<PathBuf>) -> Client {
        Client { socket: socket.into() }
    }

    /// The socket it asks.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks and waits for the answer. Must not be called from asynchronous code.
    pub fn request(&self, request: &AdminRequest) -> Result<AdminReply, ClientError> {
        let deadline = deadline(request);
        let body = serde_json::to_vec(request).expect("a request is always JSON");
        let request = Request::post(api::PATH_REQUEST)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .expect("the parts of the request are constants");
        let (status, body) = self.exchange(request, deadline)?;
        if status == StatusCode::OK {
            return serde_json::from_slice(&body).map_err(|error| self.mismatch(&error));
        }
        let error: AdminError =
            serde_json::from_slice(&body).map_err(|error| self.mismatch(&error))?;
        Err(ClientError::Refused(error))
    }

    /// The body of a plain `GET`, such as [`api::PATH_METRICS`], whatever its status.
    pub fn get(&self, path: &str) -> Result<(u16, Vec<u8>), ClientError> {
        let request = Request::get(path)
            .body(Full::new(Bytes::new()))
            .map_err(|error| ClientError::Broken(format!("`{path}` is no path: {error}")))?;
        let deadline = Duration::from_millis(ADMIN_QUESTION_MS_MAX);
        let (status, body) = self.exchange(request, deadline)?;
        Ok((status.as_u16(), body.to_vec()))
    }

    fn exchange(
        &self,
        mut request: Request<Full<Bytes>>,
        deadline: Duration,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        request.headers_mut().insert(header::HOST, header::HeaderValue::from_static("sheep"));
        request.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| ClientError::Broken(format!("cannot start: {error}")))?;
        runtime.block_on(async {
            let stream = UnixStream::connect(&self.socket).await.map_err(|e| self.refused(&e))?;
            match tokio::time::timeout(deadline, converse(stream, request)).await {
                Ok(answer) => answer.map_err(|error| {
                    ClientError::Broken(format!(
                        "the sheep at {} ended the conversation ({error}); look at its log, and \
                         check whether the request took effect",
                        self.socket.display()
                    ))
                }),
                Err(_) => Err(ClientError::Broken(format!(
                    "the sheep at {} did not answer within {} s; look at its log, and check \
                     whether the request took effect",
                    self.socket.display(),
                    deadline.as_secs()
                ))),
            }
        })
    }

    /// The sentence for a socket that cannot be connected to.
    fn refused(&self, error: &io::Error) -> ClientError {
        let socket = self.socket.display();
        let data = self.socket.parent().unwrap_or(Path::new(".")).display();
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                if self.socket
                    != api::admin_socket(self.socket.parent().unwrap_or(&self.socket)) =>
            {
                ClientError::NotRunning(format!(
                    "no sheep listens on {socket}; start it, or name its admin socket with --socket"
                ))
            }
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning(format!(
                    "no sheep is running with data directory {data}; start it with `sheep --data \
                     {data}`, or name another directory with --data"
                ))
            }
            io::ErrorKind::PermissionDenied => {
                let owner = std::fs::metadata(&self.socket)
                    .map_or_else(|_| "its owner".to_string(), |m| format!("user {}", m.uid()));
                ClientError::Permission(format!(
                    "permission denied on {socket}: only {owner} and root may manage this node; \
                     run dog as one of them, for example with sudo"
                ))
            }
            _ => ClientError::Broken(format!(
                "cannot connect to {socket}: {error}; check that the path is right and short \
                 enough for a socket (107 bytes)"
            )),
        }
    }

    /// The sentence for an answer this program does not understand.
    fn mismatch(&self, error: &serde_json::Error) -> ClientError {
        ClientError::Broken(format!(
            "the sheep at {} gave an answer that this dog does not understand ({error}); install \
             the same version of both",
            self.socket.display()
        ))
    }
}

/// How long an answer is waited for.
fn deadline(request: &AdminRequest) -> Duration {
    match request.is_answered_at_once() {
        true => Duration::from_millis(ADMIN_QUESTION_MS_MAX),
        false => Duration::from_millis(ADMIN_ANSWER_MS_MAX) + ANSWER_MARGIN,
    }
}

/// One HTTP exchange on a fresh connection. The answer's body is bounded.
async fn converse(
    stream: UnixStream,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ADMIN_REPLY_BYTES_MAX).collect().await?;
        Ok((status, body.to_bytes()))
    };
    // The connection must be driven for the exchange to move; its own error shows there.
    tokio::pin!(exchange, connection);
    tokio::select! {
        answer = &mut exchange => answer,
        ended = &mut connection => {
            ended?;
            exchange.await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::admin::AdminErrorKind;
    use std::{
        io::{Read, Write},
        os::unix::net::UnixListener,
        thread,
    };

    /// Asks a server that answers with these bytes and closes.
    fn ask(answer: &'static [u8]) -> Result<AdminReply, ClientError> {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let socket = directory.path().join("admin.sock");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut request = [0u8; 4096];
            let length = stream.read(&mut request).expect("a request");
            stream.write_all(answer).expect("an answer");
            String::from_utf8_lossy(&request[..length]).to_string()
        });
        let result = Client::new(&socket).request(&AdminRequest::Status);
        let request = server.join().expect("the server ends");
        assert!(request.starts_with("POST /v1/request HTTP/1.1\r\n"), "{request}");
        assert!(request.ends_with(r#"{"request":"status"}"#), "{request}");
        result
    }

    #[test]
    fn answers_are_told_apart() {
        let ok = ask(b"HTTP/1.1 200 OK\r\ncontent-length: 16\r\n\r\n{\"reply\":\"done\"}");
        assert!(matches!(ok, Ok(AdminReply::Done)), "{ok:?}");
        let refused = ask(b"HTTP/1.1 404 Not Found\r\ncontent-length: 43\r\n\r\n\
              {\"kind\":\"not_found\",\"sentence\":\"no volume\"}");
        match refused {
            Err(ClientError::Refused(error)) => assert_eq!(error.kind, AdminErrorKind::NotFound),
            other => panic!("{other:?}"),
        }
        for broken in
            [&b""[..], b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", b"hello\r\n\r\n"]
        {
            let result = ask(broken);
            assert!(matches!(result, Err(ClientError::Broken(_))), "{result:?}");
        }
    }

    #[test]
    fn absent_daemon_is_told_with_the_command_that_starts_it() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let socket = directory.path().join("admin.sock");
        let check = || {
            let error = Client::new(&socket).request(&AdminRequest::Status).expect_err("nobody");
            assert!(matches!(error, ClientError::NotRunning(_)), "{error:?}");
            assert!(error.to_string().contains("start it with `sheep --data"), "{error}");
        };
        check();
        drop(UnixListener::bind(&socket).expect("a socket whose process is gone"));
        check();
        // A socket that is in no data directory: nothing is known of where sheep keeps its data.
        let error = Client::new("/nope").request(&AdminRequest::Status).expect_err("nobody");
        assert!(error.to_string().starts_with("no sheep listens on /nope; "), "{error}");
    }
}
