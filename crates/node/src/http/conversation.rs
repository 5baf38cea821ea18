//! Whom a connection waits for: its client, and since when, or us.

use axum::body::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Instant,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
};

/// What is known of one connection. It waits for its client while a request is not there whole, and
/// while a reply is not taken; in between it waits for us.
#[derive(Debug)]
pub struct Conversation {
    /// When its client last brought or took something.
    progress: Mutex<Instant>,
    /// Whether a whole request is being answered.
    is_answering: AtomicBool,
    /// Told when it waits for its client again.
    freed: Arc<Notify>,
}

impl Conversation {
    /// Of a connection that was just accepted.
    #[allow(clippy::disallowed_methods, reason = "the node reads the clock of real connections")]
    pub fn new(freed: Arc<Notify>) -> Conversation {
        let is_answering = AtomicBool::new(false);
        Conversation { progress: Mutex::new(Instant::now()), is_answering, freed }
    }

    /// Since when nothing came from the client nor went to it, if it is the client that is waited
    /// for.
    pub fn idle_since(&self) -> Option<Instant> {
        let progress = *self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        (!self.is_answering.load(Ordering::Relaxed)).then_some(progress)
    }

    /// The answer is there; the client has yet to take it.
    pub fn is_answered(&self) {
        self.has_moved();
        self.is_answering.store(false, Ordering::Relaxed);
        self.freed.notify_one();
    }

    /// The whole request is there.
    fn is_asked(&self) {
        self.is_answering.store(true, Ordering::Relaxed);
    }

    #[allow(clippy::disallowed_methods, reason = "the node reads the clock of real connections")]
    fn has_moved(&self) {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

/// A socket whose progress is noted.
pub struct Watched<S> {
    inner: S,
    conversation: Arc<Conversation>,
}

impl<S> Watched<S> {
    /// Watches it for the conversation.
    pub fn new(inner: S, conversation: Arc<Conversation>) -> Watched<S> {
        Watched { inner, conversation }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.inner).poll_read(context, into));
        self.conversation.has_moved();
        Poll::Ready(result)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.inner).poll_write(context, bytes));
        self.conversation.has_moved();
        Poll::Ready(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

/// A request's body. When it is dropped it was read to its end, or nobody wants it: the request is
/// there.
pub struct Question<B> {
    inner: B,
    conversation: Arc<Conversation>,
}

impl<B> Question<B> {
    /// That of a request of the conversation.
    pub fn new(inner: B, conversation: Arc<Conversation>) -> Question<B> {
        Question { inner, conversation }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Question<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        Pin::new(&mut self.inner).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl<B> Drop for Question<B> {
    fn drop(&mut self) {
        self.conversation.is_asked();
    }
}
