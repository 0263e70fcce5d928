//! What a layer remembers per rule and group, each with a time at which something is due. Bounded: beyond its limit the
//! one that was longest unused goes.

use std::{collections::BTreeSet, hash::Hash, sync::Arc};

use lru::LruCache;

use crate::{
    SourceId,
    rule::{Alert, Pairs},
    time::Time,
};

/// A rule and a group of it, of one source where it came from another process.
pub(super) type AlertKey = (Option<SourceId>, Arc<str>, Pairs);

pub(super) fn key_of(alert: &Alert) -> AlertKey {
    let source = alert.origin.as_ref().map(|origin| origin.source.clone());
    (source, alert.rule.clone(), alert.group.clone())
}

/// How many rules and groups a layer remembers unless told otherwise.
pub(super) const KEYS_MAX_DEFAULT: usize = 10_000;

pub(super) struct Keys<K, V> {
    entries: LruCache<K, Entry<V>>,
    due: BTreeSet<(Time, K)>,
    max: usize,
}

struct Entry<V> {
    value: V,
    due: Option<Time>,
}

impl<K: Clone + Ord + Hash, V> Keys<K, V> {
    /// `max` of 0 counts as 1.
    pub(super) fn new(max: usize) -> Self {
        Keys {
            entries: LruCache::unbounded(),
            due: BTreeSet::new(),
            max: max.max(1),
        }
    }

    pub(super) fn get(&mut self, key: &K) -> Option<&mut V> {
        self.entries.get_mut(key).map(|entry| &mut entry.value)
    }

    /// Adds one that is not there; gives the one that had to go for it.
    #[must_use]
    pub(super) fn insert(&mut self, key: K, value: V, due: Option<Time>) -> Option<V> {
        let gone = (self.entries.len() >= self.max)
            .then(|| self.entries.pop_lru())
            .flatten();
        if let Some((key, Entry { due: Some(at), .. })) = &gone {
            self.due.remove(&(*at, key.clone()));
        }
        if let Some(at) = due {
            self.due.insert((at, key.clone()));
        }
        self.entries.put(key, Entry { value, due });
        gone.map(|(_, entry)| entry.value)
    }

    /// Sets when `key` is due; nothing where it is not there.
    pub(super) fn set_due(&mut self, key: &K, due: Option<Time>) {
        let Some(entry) = self.entries.peek_mut(key) else {
            return;
        };
        let before = std::mem::replace(&mut entry.due, due);
        if before == due {
            return;
        }
        if let Some(at) = before {
            self.due.remove(&(at, key.clone()));
        }
        if let Some(at) = due {
            self.due.insert((at, key.clone()));
        }
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let entry = self.entries.pop(key)?;
        if let Some(at) = entry.due {
            self.due.remove(&(at, key.clone()));
        }
        Some(entry.value)
    }

    /// The earliest of those due by `now`, which is due no more.
    pub(super) fn pop_due(&mut self, now: Time) -> Option<K> {
        if self.due.first()?.0 > now {
            return None;
        }
        let (_, key) = self.due.pop_first()?;
        if let Some(entry) = self.entries.peek_mut(&key) {
            entry.due = None;
        }
        Some(key)
    }

    pub(super) fn next_due(&self) -> Option<Time> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Takes out all, those that are due in the order in which they are.
    pub(super) fn drain(&mut self) -> Vec<V> {
        let due = std::mem::take(&mut self.due);
        let mut all: Vec<_> = due
            .into_iter()
            .filter_map(|(_, key)| self.entries.pop(&key))
            .map(|entry| entry.value)
            .collect();
        while let Some((_, entry)) = self.entries.pop_lru() {
            all.push(entry.value);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_longest_unused_goes_and_is_due_no_more() {
        let mut keys = Keys::new(2);
        assert_eq!(keys.insert(1, "a", Some(Time(10))), None);
        assert_eq!(keys.insert(2, "b", Some(Time(20))), None);
        assert_eq!(keys.get(&1), Some(&mut "a"));
        assert_eq!(keys.insert(3, "c", Some(Time(5))), Some("b"));
        assert_eq!(keys.pop_due(Time(30)), Some(3));
        assert_eq!(keys.pop_due(Time(30)), Some(1));
        assert_eq!(keys.pop_due(Time(30)), None);
        assert_eq!(keys.drain().len(), 2);
    }

    #[test]
    fn what_is_due_can_be_put_off_and_taken_away() {
        let mut keys = Keys::new(8);
        let _ = keys.insert("a", (), Some(Time(10)));
        keys.set_due(&"a", Some(Time(30)));
        assert_eq!(keys.pop_due(Time(20)), None);
        assert_eq!(keys.next_due(), Some(Time(30)));
        keys.set_due(&"a", None);
        assert_eq!(keys.next_due(), None);
        keys.set_due(&"a", Some(Time(40)));
        assert_eq!(keys.remove(&"a"), Some(()));
        assert_eq!(keys.next_due(), None);
    }
}
