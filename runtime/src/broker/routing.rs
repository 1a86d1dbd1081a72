//! Where a delivery goes, by what is declared: the broker's own rules, pure.
//!
//! # Invariants
//!
//! - A delivery reaches a queue at most once, however many bindings lead there.

use std::collections::{BTreeMap, BTreeSet};

use super::topology::{Binding, Declaration, Destination, Exchange, ExchangeKind};

/// The exchanges and bindings of a broker.
#[derive(Debug, Clone, Default)]
pub struct Router {
    exchanges: BTreeMap<String, (ExchangeKind, Option<String>)>,
    bindings: BTreeMap<String, BTreeSet<(String, Destination)>>,
}

impl Router {
    /// Adds what is declared; queues are none of its business.
    pub fn declare(&mut self, declaration: &Declaration) {
        match declaration {
            Declaration::Exchange(Exchange {
                name,
                kind,
                alternate,
            }) => {
                self.exchanges
                    .insert(name.clone(), (*kind, alternate.clone()));
            }
            Declaration::Binding(Binding {
                source,
                key,
                destination,
            }) => {
                let bindings = self.bindings.entry(source.clone()).or_default();
                bindings.insert((key.clone(), destination.clone()));
            }
            Declaration::Queue(_) => {}
        }
    }

    /// Removes a binding, if it is there.
    pub fn unbind(&mut self, binding: &Binding) {
        if let Some(bindings) = self.bindings.get_mut(&binding.source) {
            bindings.remove(&(binding.key.clone(), binding.destination.clone()));
        }
    }

    /// Removes all bindings that lead to a queue.
    pub fn remove_queue(&mut self, queue: &str) {
        for bindings in self.bindings.values_mut() {
            bindings.retain(|(_, to)| !matches!(to, Destination::Queue(name) if name == queue));
        }
    }

    /// Removes an exchange and what leads to and from it.
    pub fn remove_exchange(&mut self, exchange: &str) {
        self.exchanges.remove(exchange);
        self.bindings.remove(exchange);
        for bindings in self.bindings.values_mut() {
            bindings
                .retain(|(_, to)| !matches!(to, Destination::Exchange(name) if name == exchange));
        }
    }

    /// The queues that something published to an exchange reaches; `None` if there is no such
    /// exchange, which is an error for its publisher.
    pub fn route(&self, exchange: &str, key: &str) -> Option<BTreeSet<String>> {
        self.exchanges.get(exchange)?;
        let mut queues = BTreeSet::new();
        let mut open = vec![exchange.to_owned()];
        let mut seen = BTreeSet::new();
        while let Some(name) = open.pop() {
            let Some((kind, alternate)) = self.exchanges.get(&name) else {
                continue;
            };
            if !seen.insert(name.clone()) {
                continue;
            }
            let mut matched = false;
            for (pattern, destination) in self.bindings.get(&name).into_iter().flatten() {
                let matches = match kind {
                    ExchangeKind::Fanout => true,
                    ExchangeKind::Direct => pattern == key,
                    ExchangeKind::Topic => topic_matches(pattern, key),
                };
                if matches {
                    matched = true;
                    match destination {
                        Destination::Queue(queue) => {
                            queues.insert(queue.clone());
                        }
                        Destination::Exchange(exchange) => open.push(exchange.clone()),
                    }
                }
            }
            if !matched {
                open.extend(alternate.clone());
            }
        }
        Some(queues)
    }
}

/// Says whether a topic pattern matches a key: `*` is one word, `#` any number of them.
pub fn topic_matches(pattern: &str, key: &str) -> bool {
    fn matches(pattern: &[&str], key: &[&str]) -> bool {
        match (pattern, key) {
            ([], []) | (["#"], _) => true,
            (["#", rest @ ..], key) => (0..=key.len()).any(|skip| matches(rest, &key[skip..])),
            (["*", rest @ ..], [_, words @ ..]) => matches(rest, words),
            ([word, rest @ ..], [first, words @ ..]) => word == first && matches(rest, words),
            _ => false,
        }
    }
    let pattern: Vec<&str> = pattern.split('.').collect();
    let key: Vec<&str> = key.split('.').collect();
    matches(&pattern, &key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, key: &str, expect: bool) {
        assert_eq!(topic_matches(pattern, key), expect, "{pattern} {key}");
    }

    #[test]
    fn topics_match_as_the_broker_says() {
        check("a.b", "a.b", true);
        check("a.*", "a.b", true);
        check("a.*", "a.b.c", false);
        check("a.*", "a", false);
        check("#.a.b", "a.b", true);
        check("#.a.b", "1.0.a.b", true);
        check("#.a.b", "1.0.a.c", false);
        check("*.1.#", "0.1", true);
        check("*.1.#", "0.1.x.y", true);
        check("*.1.#", "1.0.x.y", false);
        check("#", "", true);
    }
}
