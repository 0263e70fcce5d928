//! Channels as services.

use std::{
    fmt,
    future::{Ready, ready},
    sync::mpsc,
    task::{Context, Poll},
};

use tower_service::Service;

use super::error::ChannelError;

/// A channel as a service: each call sends.
///
/// | sender | when full |
/// |---|---|
/// | `tokio::sync::mpsc::Sender` (feature `tokio`) | is not ready until there is a place; that place is then reserved for the call |
/// | `std::sync::mpsc::SyncSender` | is always ready, and the call fails with [`ChannelError::Full`] |
/// | `std::sync::mpsc::Sender` | has no bound; see that the receiver keeps up |
///
/// A receiver that is gone makes each call fail with [`ChannelError::Closed`].
///
/// ```
/// use metricbus::{MetricBus, Threshold, service};
///
/// let bus = MetricBus::new();
/// let kv = bus.gauge("kv_usage_ratio", "Share of KV blocks in use.")?;
/// let (sender, receiver) = std::sync::mpsc::sync_channel(16);
/// let _subscription = bus
///     .on_threshold(&kv, Threshold::above(0.9))
///     .service(service::channel(sender))?;
/// kv.set(0.95);
/// assert_eq!(receiver.recv()?.value, 0.95);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn channel<S: Sender>(sender: S) -> S::Service {
    sender.into_service()
}

/// The sending end of a channel. Sealed.
pub trait Sender: sealed::Sender {
    /// The service that sends into it.
    type Service;

    #[doc(hidden)]
    fn into_service(self) -> Self::Service;
}

mod sealed {
    use std::sync::mpsc;

    pub trait Sender {}

    impl<T> Sender for mpsc::Sender<T> {}
    impl<T> Sender for mpsc::SyncSender<T> {}
    #[cfg(feature = "tokio")]
    impl<T> Sender for tokio::sync::mpsc::Sender<T> {}
}

/// The service of a channel of the standard library. Made by [`channel`].
pub struct StdChannel<S>(S);

macro_rules! std_channel {
    ($sender:ident, |$inner:ident, $request:ident| $send:expr) => {
        impl<T> Sender for mpsc::$sender<T> {
            type Service = StdChannel<Self>;

            fn into_service(self) -> StdChannel<Self> {
                StdChannel(self)
            }
        }

        impl<T> Service<T> for StdChannel<mpsc::$sender<T>> {
            type Response = ();
            type Error = ChannelError;
            type Future = Ready<Result<(), ChannelError>>;

            fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), ChannelError>> {
                Poll::Ready(Ok(()))
            }

            fn call(&mut self, $request: T) -> Self::Future {
                let $inner = &self.0;
                ready($send)
            }
        }
    };
}

std_channel!(Sender, |sender, request| sender
    .send(request)
    .map_err(|_| ChannelError::Closed));

std_channel!(SyncSender, |sender, request| sender
    .try_send(request)
    .map_err(|error| match error {
        mpsc::TrySendError::Full(_) => ChannelError::Full,
        mpsc::TrySendError::Disconnected(_) => ChannelError::Closed,
    }));

impl<S: Clone> Clone for StdChannel<S> {
    fn clone(&self) -> Self {
        StdChannel(self.0.clone())
    }
}

impl<S> fmt::Debug for StdChannel<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StdChannel")
    }
}

#[cfg(feature = "tokio")]
pub use self::of_tokio::TokioChannel;

#[cfg(feature = "tokio")]
mod of_tokio {
    use std::{future::Future, pin::Pin, task::ready};

    use tokio::sync::mpsc::{OwnedPermit, Sender, error::SendError};

    use super::{ChannelError, Context, Poll, Ready, Service, fmt};

    type Reserving<T> = Pin<Box<dyn Future<Output = Result<OwnedPermit<T>, SendError<()>>> + Send>>;

    /// The service of tokio's bounded channel. Made by [`channel`](super::channel).
    pub struct TokioChannel<T> {
        sender: Sender<T>,
        state: State<T>,
    }

    enum State<T> {
        Idle,
        Reserving(Reserving<T>),
        Reserved(OwnedPermit<T>),
    }

    impl<T> super::Sender for Sender<T> {
        type Service = TokioChannel<T>;

        fn into_service(self) -> TokioChannel<T> {
            TokioChannel {
                sender: self,
                state: State::Idle,
            }
        }
    }

    impl<T: Send + 'static> Service<T> for TokioChannel<T> {
        type Response = ();
        type Error = ChannelError;
        type Future = Ready<Result<(), ChannelError>>;

        fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ChannelError>> {
            loop {
                match &mut self.state {
                    State::Reserved(_) => return Poll::Ready(Ok(())),
                    State::Reserving(reserving) => {
                        let reserved = ready!(reserving.as_mut().poll(cx));
                        let Ok(permit) = reserved else {
                            self.state = State::Idle;
                            return Poll::Ready(Err(ChannelError::Closed));
                        };
                        self.state = State::Reserved(permit);
                    }
                    State::Idle => {
                        let reserve = self.sender.clone().reserve_owned();
                        self.state = State::Reserving(Box::pin(reserve));
                    }
                }
            }
        }

        /// Without a place reserved (a caller that did not ask whether it is ready) it takes one if there is one.
        fn call(&mut self, request: T) -> Self::Future {
            use tokio::sync::mpsc::error::TrySendError;

            let sent = match std::mem::replace(&mut self.state, State::Idle) {
                State::Reserved(permit) => {
                    permit.send(request);
                    Ok(())
                }
                _ => self.sender.try_send(request).map_err(|error| match error {
                    TrySendError::Full(_) => ChannelError::Full,
                    TrySendError::Closed(_) => ChannelError::Closed,
                }),
            };
            std::future::ready(sent)
        }
    }

    /// A clone has no place reserved.
    impl<T> Clone for TokioChannel<T> {
        fn clone(&self) -> Self {
            TokioChannel {
                sender: self.sender.clone(),
                state: State::Idle,
            }
        }
    }

    impl<T> fmt::Debug for TokioChannel<T> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("TokioChannel")
        }
    }
}
