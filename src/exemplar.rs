//! Exemplars: single mutations with a few words on where they came from, such as the id of a trace. Owns their rules and
//! the places in which the latest are kept; never on the path of a mutation that has none.

use std::{
    sync::{Mutex, PoisonError, TryLockError},
    time::SystemTime,
};

use crate::{error::ExemplarError, names::plain_label_fault, sync::lock_politely};

/// The most characters that the names and values of an exemplar's labels may have together: OpenMetrics's limit.
const CHARACTERS_MAX: usize = 128;

/// One mutation of a counter, or one observation of a histogram, with labels of its own: mostly the id of the trace in
/// which it happened. The exporter shows the latest of each counter, and of each bucket of a histogram.
///
/// ```
/// use metricbus::{Buckets, MetricBus};
///
/// let bus = MetricBus::new();
/// let wait = bus.histogram("wait_seconds", "Time waited.", Buckets::new([0.1, 1.0])?)?;
/// wait.observe_with_exemplar(0.7, &[("trace_id", "4bf92f35")])?;
/// let exemplars = wait.exemplars();
/// assert_eq!((exemplars[0].0, exemplars[0].1.value), (1.0, 0.7));
/// assert_eq!(exemplars[0].1.labels, [("trace_id".to_owned(), "4bf92f35".to_owned())]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Exemplar {
    /// Names and values; 128 characters in all at most. A name has letters of ASCII, digits and `_`, and does not begin with a
    /// digit or `__`.
    pub labels: Vec<(String, String)>,
    /// What was observed, or by how much the counter was raised.
    pub value: f64,
    /// When, by the bus's clock.
    pub at: SystemTime,
}

/// Parsers of OpenMetrics know no names in quotes here, and some refuse a whole scrape for a name that is reserved.
fn fault(name: &str) -> Option<String> {
    plain_label_fault(name).or_else(|| {
        name.starts_with("__")
            .then(|| "names beginning with __ are Prometheus's own".to_owned())
    })
}

/// Labels that an exemplar can have, or why not.
pub(crate) fn checked(labels: &[(&str, &str)]) -> Result<Vec<(String, String)>, ExemplarError> {
    let mut characters = 0;
    for (i, (name, value)) in labels.iter().enumerate() {
        if let Some(why) = fault(name) {
            return Err(ExemplarError::LabelName {
                label: (*name).to_owned(),
                why,
            });
        }
        if labels[..i].iter().any(|(earlier, _)| earlier == name) {
            return Err(ExemplarError::LabelTwice {
                label: (*name).to_owned(),
            });
        }
        characters += name.chars().count() + value.chars().count();
    }
    if characters > CHARACTERS_MAX {
        return Err(ExemplarError::TooLong {
            characters,
            max: CHARACTERS_MAX,
        });
    }
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    Ok(labels.iter().map(owned).collect())
}

/// The latest exemplars of one series: one place for a counter, one for each bucket of a histogram.
pub(crate) struct Exemplars {
    places: Box<[Mutex<Option<Exemplar>>]>,
}

impl Exemplars {
    pub(crate) fn new(places: usize) -> Box<Self> {
        Box::new(Exemplars {
            places: (0..places).map(|_| Mutex::default()).collect(),
        })
    }

    /// Replaces the one before. Whoever finds somebody else at the place, to write or to read, leaves it: one exemplar is
    /// as good as another, and no mutating thread waits.
    pub(crate) fn keep(&self, place: usize, exemplar: Exemplar) {
        let Some(place) = self.places.get(place) else {
            return;
        };
        let mut guard = match place.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => PoisonError::into_inner(poisoned),
            Err(TryLockError::WouldBlock) => return,
        };
        let earlier = guard.replace(exemplar);
        drop(guard);
        drop(earlier);
    }

    /// Shows the one at a place to `f`, if there is one.
    pub(crate) fn with<T>(&self, place: usize, f: impl FnOnce(&Exemplar) -> T) -> Option<T> {
        lock_politely(self.places.get(place)?).as_ref().map(f)
    }

    /// All there are, each with its place.
    pub(crate) fn all(&self) -> Vec<(usize, Exemplar)> {
        (0..self.places.len())
            .filter_map(|place| Some((place, self.with(place, Exemplar::clone)?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::{Buckets, Clock, Counter, Desc, MetricBus};

    fn bus() -> (MetricBus, Clock) {
        let clock = Clock::manual();
        (MetricBus::builder().clock(clock.clone()).build(), clock)
    }

    #[test]
    fn a_counter_keeps_its_latest_exemplar() {
        let (bus, clock) = bus();
        let requests = bus.counter("requests_total", "h").unwrap();
        assert_eq!(requests.exemplar(), None);
        requests.inc_with_exemplar(&[("trace_id", "a")]).unwrap();
        clock.advance(Duration::from_secs(3));
        requests
            .inc_by_with_exemplar(4, &[("trace_id", "b"), ("span", "é")])
            .unwrap();
        assert_eq!(requests.get(), 5);
        let labels = [("trace_id", "b"), ("span", "é")];
        let expected = Exemplar {
            labels: labels.map(|(n, v)| (n.to_owned(), v.to_owned())).to_vec(),
            value: 4.0,
            at: UNIX_EPOCH + Duration::from_secs(3),
        };
        assert_eq!(requests.exemplar(), Some(expected));
    }

    #[test]
    fn a_histogram_keeps_the_latest_exemplar_of_each_bucket() {
        let (bus, _) = bus();
        let h = bus
            .histogram("h", "h", Buckets::new([1.0, 10.0]).unwrap())
            .unwrap();
        for (value, id) in [(0.5, "a"), (0.75, "b"), (5.0, "c"), (f64::INFINITY, "d")] {
            h.observe_with_exemplar(value, &[("id", id)]).unwrap();
        }
        let kept: Vec<_> = h
            .exemplars()
            .into_iter()
            .map(|(bound, e)| (bound, e.value, e.labels[0].1.clone()))
            .collect();
        let expected = [
            (1.0, 0.75, "b"),
            (10.0, 5.0, "c"),
            (f64::INFINITY, f64::INFINITY, "d"),
        ];
        assert_eq!(kept, expected.map(|(b, v, id)| (b, v, id.to_owned())));
        assert_eq!(h.snapshot().count, 4);
    }

    #[test]
    fn what_can_be_no_exemplar_is_counted_all_the_same_and_nothing_is_kept() {
        let (bus, _) = bus();
        let c = bus.counter("c_total", "h").unwrap();
        let h = bus.histogram("h", "h", Buckets::default()).unwrap();
        let long = "é".repeat(126);
        c.inc_with_exemplar(&[("id", &long)]).unwrap();
        let too_long = format!("{long}x");
        let wrong: [(&[(&str, &str)], &str); 7] = [
            (&[("id", &too_long)], "129 characters"),
            (&[("id", "1"), ("id", "2")], "twice"),
            (&[("trace-id", "1")], "'-'"),
            (&[("größe", "1")], "'ö'"),
            (&[("__trace", "1")], "beginning with __"),
            (&[("__name__", "1")], "beginning with __"),
            (&[("", "1")], "it is empty"),
        ];
        for (labels, says) in wrong {
            let error = c.inc_with_exemplar(labels).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
            let error = h.observe_with_exemplar(1.0, labels).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
        assert_eq!(c.get(), 8);
        assert_eq!(c.exemplar().unwrap().labels[0].1, long);
        let nan = h.observe_with_exemplar(f64::NAN, &[]).unwrap_err();
        assert_eq!(nan, ExemplarError::NoNumber);
        assert_eq!(h.snapshot().count, 8);
        assert!(h.exemplars().is_empty());
    }

    #[test]
    fn an_amount_that_a_counter_refuses_leaves_no_exemplar() {
        let (bus, _) = bus();
        let c: Counter<f64> = bus.declare(Desc::new("c_seconds_total", "h")).unwrap();
        for amount in [-1.0, f64::NAN, f64::INFINITY] {
            let error = c.inc_by_with_exemplar(amount, &[]).unwrap_err();
            assert!(matches!(error, ExemplarError::Amount { .. }), "{error}");
        }
        assert_eq!((c.get(), c.exemplar()), (0.0, None));
    }

    #[test]
    fn a_mutator_that_finds_its_place_taken_leaves_it() {
        let (bus, _) = bus();
        let c = bus.counter("c_total", "h").unwrap();
        c.inc_with_exemplar(&[("id", "first")]).unwrap();
        let core = c.series().core().clone();
        let exemplars = core.exemplars.get().unwrap();
        exemplars.with(0, |_| c.inc_with_exemplar(&[("id", "second")]).unwrap());
        assert_eq!(c.get(), 2);
        assert_eq!(c.exemplar().unwrap().labels[0].1, "first");
    }
}
