//! What is kept as long as somebody asks for it: pure bookkeeping.

use std::{collections::HashMap, hash::Hash, time::Duration};

use crate::time::Time;

/// Things by what was asked, each with a lease that every question renews. When there is no room, what nobody has asked for
/// the longest goes first.
pub(super) struct Leases<K, V> {
    all: HashMap<K, Lease<V>>,
    max: usize,
    weight_max: usize,
}

struct Lease<V> {
    what: V,
    weight: usize,
    used: Time,
    keep: Duration,
}

impl<K: Hash + Eq + Clone, V> Leases<K, V> {
    /// For at most so many, of at most so much weight together.
    pub(super) fn new(max: usize, weight_max: usize) -> Self {
        Leases {
            all: HashMap::new(),
            max: max.max(1),
            weight_max,
        }
    }

    /// What there is, its lease renewed.
    pub(super) fn get(&mut self, key: &K, now: Time) -> Option<&V> {
        let lease = self.all.get_mut(key)?;
        lease.used = lease.used.max(now);
        Some(&lease.what)
    }

    /// Keeps something until nobody has asked for it for as long as `keep`. What had to go for it.
    pub(super) fn put(
        &mut self,
        key: K,
        what: V,
        weight: usize,
        keep: Duration,
        now: Time,
    ) -> Vec<V> {
        let mut gone: Vec<V> = self.all.remove(&key).into_iter().map(|l| l.what).collect();
        while !self.all.is_empty()
            && (self.all.len() >= self.max || self.weight() + weight > self.weight_max)
        {
            let oldest = self.all.iter().min_by_key(|(_, lease)| lease.used);
            let Some(key) = oldest.map(|(key, _)| key.clone()) else {
                break;
            };
            gone.extend(self.all.remove(&key).map(|lease| lease.what));
        }
        let lease = Lease {
            what,
            weight,
            used: now,
            keep,
        };
        self.all.insert(key, lease);
        gone
    }

    fn weight(&self) -> usize {
        self.all.values().map(|lease| lease.weight).sum()
    }

    /// Lets go of what nobody has asked for.
    pub(super) fn expire(&mut self, now: Time) -> Vec<V> {
        let over = self.all.extract_if(|_, lease| lease.end() <= now);
        over.map(|(_, lease)| lease.what).collect()
    }

    /// When something is to be let go of.
    pub(super) fn next(&self) -> Option<Time> {
        self.all.values().map(Lease::end).min()
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.all.len()
    }
}

impl<V> Lease<V> {
    fn end(&self) -> Time {
        self.used + self.keep
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Duration = Duration::from_secs(60);

    fn at(secs: u64) -> Time {
        Time::ZERO + Duration::from_secs(secs)
    }

    #[test]
    fn what_is_asked_for_stays_and_what_is_not_goes() {
        let mut leases = Leases::new(8, 100);
        assert_eq!(leases.next(), None);
        leases.put("a", 'a', 1, KEEP, at(0));
        leases.put("b", 'b', 1, KEEP * 2, at(0));
        assert_eq!(leases.next(), Some(at(60)));
        assert_eq!(leases.get(&"a", at(50)), Some(&'a'));
        assert!(leases.expire(at(109)).is_empty());
        assert_eq!(leases.expire(at(110)), ['a']);
        assert_eq!(leases.get(&"a", at(110)), None);
        assert_eq!(leases.expire(at(120)), ['b']);
        assert_eq!(leases.next(), None);
    }

    #[test]
    fn where_there_are_too_many_the_one_not_asked_for_the_longest_goes() {
        let mut leases = Leases::new(2, 100);
        leases.put("a", 'a', 1, KEEP, at(0));
        leases.put("b", 'b', 1, KEEP, at(1));
        leases.get(&"a", at(2));
        assert_eq!(leases.put("c", 'c', 1, KEEP, at(3)), ['b']);
        assert_eq!(leases.put("c", 'd', 1, KEEP, at(4)), ['c']);
        assert_eq!(leases.len(), 2);
    }

    #[test]
    fn what_is_heavy_takes_the_place_of_several_and_stays_alone_if_need_be() {
        let mut leases = Leases::new(9, 10);
        for (i, key) in ["a", "b", "c"].into_iter().enumerate() {
            leases.put(key, key, 3, KEEP, at(i as u64));
        }
        assert_eq!(leases.put("d", "d", 6, KEEP, at(9)), ["a", "b"]);
        assert_eq!(leases.put("e", "e", 99, KEEP, at(9)).len(), 2);
        assert_eq!(leases.len(), 1);
    }
}
