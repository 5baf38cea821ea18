//! Accepting HTTP connections under a cap, and serving each under deadlines.

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use proto::limits::{ADMIN_ANSWER_MS_MAX, ADMIN_CONNECTIONS_MAX, ADMIN_READ_MS_MAX};
use std::{convert::Infallible, future::Future, io, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
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
    let cap = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = Arc::clone(&cap).acquire_owned().await.expect("the cap is never closed");
        match accept().await {
            Ok(stream) => {
                let conversation = converse(stream, router.clone());
                tokio::task::spawn_local(async move {
                    conversation.await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!("cannot accept HTTP connections for the moment: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn converse<S>(stream: S, router: Router) -> impl Future<Output = ()>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(ADMIN_READ_MS_MAX))
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    async move {
        match tokio::time::timeout(LIFE_MAX, connection).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!("an HTTP connection ended badly: {error}"),
            Err(_) => tracing::debug!("an HTTP connection took too long and was closed"),
        }
    }
}
