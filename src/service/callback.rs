//! Closures as services.

use std::{
    convert::Infallible,
    fmt,
    future::{Future, Ready, ready},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tower_service::Service;

/// A closure as a service that never fails and is always ready.
///
/// It runs where the service is called: in a [subscription](crate::Listen::service) in the task of that. One that takes
/// long or blocks holds up the alerts after it, and outside of the bus's own threads other tasks.
///
/// For async closures that can fail there is tower's `service_fn`.
///
/// ```
/// use metricbus::{Alert, service::callback};
///
/// let service = callback(|alert: Alert| println!("{alert}"));
/// # let _ = service;
/// ```
pub fn callback<F>(f: F) -> Callback<F> {
    Callback(f)
}

/// An async closure, or one that gives a future, as a service that never fails and is always ready. Other than with
/// tower's `service_fn` it needs no error type, and may change what it captured.
///
/// ```
/// use metricbus::{Alert, service::async_callback};
///
/// let mut count = 0;
/// let service = async_callback(move |alert: Alert| {
///     count += 1;
///     async move { println!("{count}: {alert}") }
/// });
/// # let _ = service;
/// ```
pub fn async_callback<F>(f: F) -> AsyncCallback<F> {
    AsyncCallback(f)
}

/// Made by [`callback`].
#[derive(Clone, Copy)]
pub struct Callback<F>(F);

/// Made by [`async_callback`].
#[derive(Clone, Copy)]
pub struct AsyncCallback<F>(F);

impl<T, F: FnMut(T)> Service<T> for Callback<F> {
    type Response = ();
    type Error = Infallible;
    type Future = Ready<Result<(), Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: T) -> Self::Future {
        (self.0)(request);
        ready(Ok(()))
    }
}

impl<T, F, Fut> Service<T> for AsyncCallback<F>
where
    F: FnMut(T) -> Fut,
    Fut: Future<Output = ()>,
{
    type Response = ();
    type Error = Infallible;
    type Future = Done<Fut>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: T) -> Self::Future {
        Done(Box::pin((self.0)(request)))
    }
}

/// The future of an [`AsyncCallback`].
pub struct Done<Fut>(Pin<Box<Fut>>);

impl<Fut: Future<Output = ()>> Future for Done<Fut> {
    type Output = Result<(), Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        ready!(self.0.as_mut().poll(cx));
        Poll::Ready(Ok(()))
    }
}

impl<F> fmt::Debug for Callback<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Callback")
    }
}

impl<F> fmt::Debug for AsyncCallback<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AsyncCallback")
    }
}

impl<Fut> fmt::Debug for Done<Fut> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Done")
    }
}
