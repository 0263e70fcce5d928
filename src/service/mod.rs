//! Notification, apart from state: alerts go to tower services, through layers that decide which of them, when, and how
//! many at once.
//!
//! [`Listen::service`] calls any `tower::Service<Alert>`. A closure ([`callback`], [`async_callback`]) and a
//! [`channel`] are services, and so is whatever tower's `service_fn` makes.
//!
//! | layer | lets pass |
//! |---|---|
//! | [`Throttle`] | at most one alert per rule and group in an interval, and the last state at its end |
//! | [`Repeat`] | each, and what fires again in each interval |
//! | [`Rollup`] | many as one [`Rolled`] |
//! | [`Stable`] | what still fires after a time, and its end |
//! | [`Flap`] | nothing of what changes all the time, until it is calm |
//!
//! They compose with each other and with tower's own. Alerts go through them from the top to the bottom:
//!
//! ```
//! use std::time::Duration;
//! use metricbus::{Alert, MetricBus, service::{Flap, Repeat, Rolled, Rollup}};
//! use tower::{BoxError, ServiceBuilder, service_fn};
//!
//! async fn post(rolled: Rolled) -> Result<(), BoxError> {
//!     // … to a webhook.
//!     println!("{} alerts", rolled.alerts.len());
//!     Ok(())
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let bus = MetricBus::new();
//! let service = ServiceBuilder::new()
//!     .layer(Flap::new(&bus, 4, Duration::from_secs(60)))
//!     .layer(Repeat::new(&bus, Duration::from_secs(3600)))
//!     .layer(Rollup::new(&bus, Duration::from_secs(5)).by(["component"]))
//!     .timeout(Duration::from_secs(10))
//!     .service(service_fn(post));
//! # let _ = service;
//! // bus.on_alert().service(service)?
//! # }
//! ```
//!
//! # How they behave
//!
//! These layers take an alert and are done with it: they are always ready, and the answer to a call is `Ok` at once, before
//! anything is delivered. So their sense of time does not depend on how slow the inner service is. A task of each layer
//! calls that, one alert at a time. It runs on the tokio runtime in which the layer was put around its service (with the
//! feature `tokio`), else on the threads of the bus; tower's `timeout` and `buffer` need a tokio runtime. Hence:
//!
//! - `timeout`, `retry`, `concurrency_limit`, `load_shed` and `buffer` belong *below* them, where deliveries are.
//! - What fails behind a layer is counted (`metricbus_alert_delivery_errors_total`) and logged, and never fatal. A service
//!   that panics three times in a row is called no more, and [`LayerError`] says so.
//! - Between a layer and its inner service is a queue with a bound. A full one drops the oldest, and counts it in
//!   `metricbus_alert_layer_dropped_total`.
//! - What is remembered per rule and group has a bound: beyond it the one longest unused is forgotten, and counted in
//!   `metricbus_alert_layer_forgotten_total`.
//! - Time is the bus's clock: on a [manual](crate::Clock::manual) one a test moves it.
//! - A subscription is a task: a test on a manual clock has to let it run before it moves the clock. These layers can
//!   also be called at once, in the thread that mutates: `.inline(move |alert| drop(service.call(alert)))`.
//! - When the subscription ends, alerts that were taken are still delivered; what was held back because it might change
//!   is sent as it is, and what was not yet known to be stable is not.
//!
//! # Build a layer from scratch
//!
//! A layer is three things: a value with its settings, a service around another, and a `Layer` that makes the second from
//! the first. This one delays alerts that are not urgent:
//!
//! ```
//! use std::{pin::Pin, task::{Context, Poll}, time::Duration};
//! use metricbus::{Alert, AlertState, Clock, MetricBus, service::callback};
//! use tower::{Layer, Service, ServiceBuilder};
//!
//! #[derive(Clone)]
//! struct Patience { clock: Clock, time: Duration }
//!
//! #[derive(Clone)]
//! struct PatienceService<S> { settings: Patience, inner: S }
//!
//! impl<S> Layer<S> for Patience {
//!     type Service = PatienceService<S>;
//!
//!     fn layer(&self, inner: S) -> PatienceService<S> {
//!         PatienceService { settings: self.clone(), inner }
//!     }
//! }
//!
//! impl<S> Service<Alert> for PatienceService<S>
//! where
//!     S: Service<Alert> + Clone + Send + 'static,
//!     S::Future: Send,
//! {
//!     type Response = S::Response;
//!     type Error = S::Error;
//!     type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;
//!
//!     fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
//!         // Whatever the inner service reserves, such as a place in a channel, it reserves here.
//!         self.inner.poll_ready(cx)
//!     }
//!
//!     fn call(&mut self, alert: Alert) -> Self::Future {
//!         // The inner service that is ready is the one here; a clone of it need not be. So this one is used up, and the
//!         // clone stays, to be asked again.
//!         let next = self.inner.clone();
//!         let mut ready = std::mem::replace(&mut self.inner, next);
//!         let urgent = alert.label("severity") == Some("page");
//!         // A future of the bus's clock: a test moves it by `clock.advance`.
//!         let sleep = self.settings.clock.sleep(self.settings.time);
//!         Box::pin(async move {
//!             if !urgent {
//!                 sleep.await;
//!             }
//!             ready.call(alert).await
//!         })
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let clock = Clock::manual();
//! let bus = MetricBus::builder().clock(clock.clone()).build();
//! let mut service = ServiceBuilder::new()
//!     .layer(Patience { clock: bus.clock().clone(), time: Duration::from_secs(5) })
//!     .service(callback(|alert: Alert| println!("{alert}")));
//!
//! let alert = Alert::new("QueueDeep", AlertState::Firing, clock.now());
//! let answer = service.call(alert);
//! clock.advance(Duration::from_secs(5));
//! answer.await?;
//! # Ok(())
//! # }
//! ```
//!
//! Three things to keep to. A future must not borrow from the service. Readiness belongs to one service and one call: it is
//! asked for before each, and no clone has it. And a future that is dropped, as by a timeout, must leave nothing behind;
//! [`Sleep`](crate::Sleep) takes its timer with it.

mod callback;
mod channel;
mod error;
mod flap;
#[cfg(feature = "http")]
mod http_metrics;
mod keys;
mod relay;
mod repeat;
mod rollup;
mod stable;
mod throttle;

#[cfg(test)]
mod by_hand;
#[cfg(test)]
mod properties;

use std::sync::{Arc, Mutex};

use tower_service::Service;

pub use self::{
    callback::{AsyncCallback, Callback, Done, async_callback, callback},
    channel::{Sender, StdChannel, channel},
    error::{BoxError, ChannelError, LayerError},
    flap::{Flap, FlapService},
    relay::LayerStats,
    repeat::{Repeat, RepeatService},
    rollup::{Rolled, Rollup, RollupService},
    stable::{Stable, StableService},
    throttle::{Throttle, ThrottleService},
};
#[cfg(feature = "tokio")]
pub use channel::TokioChannel;
#[cfg(feature = "http")]
pub use http_metrics::{HttpMetrics, HttpMetricsFuture, HttpMetricsService};

use self::relay::{Failure, deliver, delivery_failed};
use crate::{
    clock::Clock,
    error::SubscribeError,
    listen::{Event, Listen},
    rule::{Alert, AlertCause, AlertState, Pairs, Quality},
    subscription::Subscription,
    sync::lock,
    time::Time,
};

impl<E: Event> Listen<E> {
    /// Calls a tower service with each event: waits until it is ready, calls it, and waits for its answer before the next
    /// one.
    ///
    /// It runs where [`call_async`](Listen::call_async) does. An error, of a call or of its readiness, is counted
    /// (`metricbus_alert_delivery_errors_total`) and logged, and the next event is tried all the same; a panic is
    /// caught as that of a callback, and three in a row detach the service. What the service answers is thrown away.
    ///
    /// ```
    /// use metricbus::{MetricBus, Threshold, service::channel};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let bus = MetricBus::new();
    /// let kv = bus.gauge("kv_usage_ratio", "Share of KV blocks in use.")?;
    /// let (sender, mut receiver) = tokio::sync::mpsc::channel(16);
    /// let _subscription = bus
    ///     .on_threshold(&kv, Threshold::above(0.9))
    ///     .service(channel(sender))?;
    /// kv.set(0.95);
    /// assert_eq!(receiver.recv().await.map(|crossing| crossing.value), Some(0.95));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`call`](Listen::call).
    pub fn service<S>(self, service: S) -> Result<Subscription, SubscribeError>
    where
        S: Service<E> + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
    {
        let stats = self.bus().inner().stats.clone();
        let home = Arc::new(Mutex::new(Some(service)));
        self.call_async(move |event| {
            let (home, stats) = (home.clone(), stats.clone());
            async move {
                // On loan to this future, which can't borrow from the closure. Calls come one at a time, and `deliver`
                // does not panic, so it is always there.
                let lent = lock(&home).take();
                let Some(mut service) = lent else { return };
                let outcome = deliver(&mut service, event).await;
                *lock(&home) = Some(service);
                match outcome {
                    Ok(()) => {}
                    Err(Failure::Error(error)) => delivery_failed(&stats, "service", &*error),
                    // Counted, and detached, as that of any callback.
                    Err(Failure::Panic(panic)) => panic.resume(),
                }
            }
        })
    }
}

impl Alert {
    /// An alert made by hand, to try a service with; a bus makes its own. Without labels, the first of its rule, of good
    /// quality; set the other fields as you like. Its date is that of a [manual clock](crate::Clock::manual).
    ///
    /// ```
    /// use metricbus::{Alert, AlertState, Time};
    ///
    /// let mut alert = Alert::new("QueueDeep", AlertState::Firing, Time::ZERO);
    /// alert.group = [("worker".to_owned(), "3".to_owned())].into();
    /// assert_eq!(alert.to_string(), r#"QueueDeep{worker="3"} firing"#);
    /// ```
    #[must_use]
    pub fn new(rule: impl Into<Arc<str>>, state: AlertState, at: Time) -> Alert {
        let date = Clock::manual().wall(at);
        Alert {
            rule: rule.into(),
            state,
            level: None,
            previous_level: None,
            group: Pairs::default(),
            labels: Pairs::default(),
            annotations: Pairs::default(),
            series: None,
            value: None,
            quality: Quality::Good,
            epoch: 1,
            cause: AlertCause::Condition,
            at,
            since: at,
            date,
            since_date: date,
            holds: 1,
            members: 1,
            holding: Arc::default(),
            repeat: 0,
            origin: None,
        }
    }
}
