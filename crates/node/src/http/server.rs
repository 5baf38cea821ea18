//! Accepting HTTP connections under a cap, and serving each under deadlines.

use super::conversation::{Conversation, Question, Watched};
use axum::{Router, body::Body};
use hyper::{Request, body::Incoming, server::conn::http1, service::Service};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use proto::limits::{ADMIN_ANSWER_MS_MAX, ADMIN_CONNECTIONS_MAX, ADMIN_READ_MS_MAX};
use std::{convert::Infallible, future::Future, io, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Notify,
    task::JoinHandle,
};

/// Connections of one listener: neither can take the other's place.
const CONNECTIONS_MAX: usize = ADMIN_CONNECTIONS_MAX / 2;
/// How long accepting rests after it failed, as when descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// How long a connection lives at most, however slowly its client reads: the longest request, and
/// time to bring and take it.
const LIFE_MAX: Duration = Duration::from_millis(ADMIN_ANSWER_MS_MAX + 6 * ADMIN_READ_MS_MAX);

/// Serves the connections of a Unix socket, for ever.
pub async fn serve_unix(listener: UnixListener, router: Router) -> Infallible {
    serve(router, async || listener.accept().await.map(|(stream, _)| stream)).await
}

/// Serves the connections of a network address, for ever.
pub async fn serve_tcp(listener: TcpListener, router: Router) -> Infallible {
    serve(router, async || listener.accept().await.map(|(stream, _)| stream)).await
}

async fn serve<S>(router: Router, accept: impl AsyncFn() -> io::Result<S>) -> Infallible
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let mut open = Open::default();
    loop {
        match accept().await {
            Ok(stream) => {
                open.make_room().await;
                open.begin(stream, router.clone());
            }
            Err(error) => {
                tracing::warn!("cannot accept HTTP connections for the moment: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The connections of one listener, at most [`CONNECTIONS_MAX`]. Who comes when there are so many
/// takes the place of the one whose client has been idle longest: idle ones keep nobody out.
#[derive(Default)]
struct Open {
    conversations: Vec<(Arc<Conversation>, JoinHandle<()>)>,
    /// Told at the end of each, and when one waits for its client again.
    freed: Arc<Notify>,
}

impl Open {
    /// Waits until there is room for one more. As fewer requests are answered at once than there
    /// may be connections, that is never long.
    async fn make_room(&mut self) {
        loop {
            self.conversations.retain(|(_, task)| !task.is_finished());
            if self.conversations.len() < CONNECTIONS_MAX {
                return;
            }
            let idle =
                self.conversations.iter().enumerate().filter_map(|(place, (known, _))| {
                    known.idle_since().map(|since| (since, place))
                });
            if let Some((_, place)) = idle.min() {
                let (_, task) = self.conversations.swap_remove(place);
                task.abort();
                tracing::debug!("an idle HTTP connection was closed to make room for another");
                return;
            }
            self.freed.notified().await;
        }
    }

    fn begin<S>(&mut self, stream: S, router: Router)
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let conversation = Arc::new(Conversation::new(Arc::clone(&self.freed)));
        let (known, freed) = (Arc::clone(&conversation), Arc::clone(&self.freed));
        let task = tokio::task::spawn_local(async move {
            converse(stream, router, known).await;
            freed.notify_one();
        });
        self.conversations.push((conversation, task));
    }
}

fn converse<S>(stream: S, router: Router, known: Arc<Conversation>) -> impl Future<Output = ()>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let router = TowerToHyperService::new(router);
    let stream = Watched::new(stream, Arc::clone(&known));
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let known = Arc::clone(&known);
        let (head, body) = request.into_parts();
        let body = Body::new(Question::new(body, Arc::clone(&known)));
        let answer = router.call(Request::from_parts(head, body));
        async move {
            let answer = answer.await;
            known.is_answered();
            answer
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(ADMIN_READ_MS_MAX))
        .serve_connection(TokioIo::new(stream), service);
    async move {
        match tokio::time::timeout(LIFE_MAX, connection).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!("an HTTP connection ended badly: {error}"),
            Err(_) => tracing::debug!("an HTTP connection took too long and was closed"),
        }
    }
}
