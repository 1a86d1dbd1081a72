//! The orders of the shop.
//!
//! # Invariants
//!
//! - `orders_repeat`: the orders a shop begins with are the same in every run.
//! - `equal_times_occur`: several orders share a time, as they do where changes come in bulk.
//! - `a_page_ends_between_orders_of_one_time`: what follows a page is everything after its last
//!   order, by time and id, so no order is hidden by a page.

use std::collections::{BTreeSet, HashMap};

use jiff::{Timestamp, ToSpan};
use serde::Serialize;

use crate::mischief::mix;

/// The most orders a shop can hold.
pub const ORDERS_MAX: u64 = 1_000_000;

/// How many of the orders that a shop begins with share one time.
const ORDERS_A_SECOND: u64 = 3;

/// An order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Order {
    /// Its id, from 1.
    pub id: u64,
    /// What people call it.
    pub number: String,
    /// Who ordered.
    pub customer: Customer,
    /// What was ordered.
    pub lines: Vec<Line>,
    /// What it costs, in cents.
    pub total_cents: u64,
    /// The currency.
    pub currency: &'static str,
    /// `paid`, `shipped` or `cancelled`.
    pub status: &'static str,
    /// How often it was changed.
    pub revision: u32,
    /// When it was changed last.
    pub updated_at: Timestamp,
}

/// Who ordered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Customer {
    /// The name.
    pub name: String,
    /// The address for letters without paper.
    pub email: String,
}

/// A line of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// The article.
    pub article: &'static str,
    /// How many.
    pub count: u64,
    /// What one costs, in cents.
    pub cents: u64,
}

const NAMES: [&str; 8] = [
    "Ada", "Björn", "Chidi", "Dorota", "Emre", "Fatima", "Grace", "Hiroshi",
];
const ARTICLES: [(&str, u64); 6] = [
    ("rope, 10 m", 1299),
    ("lantern", 2450),
    ("mooring stake", 899),
    ("windlass key", 1750),
    ("tiller pin, \"swan\"", 3999),
    ("canal map", 650),
];
const STATUSES: [&str; 4] = ["paid", "paid", "shipped", "cancelled"];

fn make(id: u64, updated_at: Timestamp) -> Order {
    let draw = mix(id);
    let pick = |shift: u32, of: usize| -> usize {
        usize::try_from((draw >> shift) % of as u64).unwrap_or_default()
    };
    let name = NAMES[pick(0, NAMES.len())];
    let lines: Vec<Line> = (0..=pick(8, 3))
        .map(|line| {
            let (article, cents) = ARTICLES[(pick(16, ARTICLES.len()) + line) % ARTICLES.len()];
            Line {
                article,
                count: 1 + (draw >> 24) % 40,
                cents,
            }
        })
        .collect();
    Order {
        id,
        number: format!("SO-{id:06}"),
        customer: Customer {
            name: name.to_owned(),
            email: format!("customer{}@example.org", draw % 997),
        },
        total_cents: lines.iter().map(|line| line.count * line.cents).sum(),
        lines,
        currency: "EUR",
        status: STATUSES[pick(40, STATUSES.len())],
        revision: 0,
        updated_at,
    }
}

/// All orders, and their order by time.
#[derive(Debug, Default)]
pub struct Orders {
    by_id: HashMap<u64, Order>,
    by_time: BTreeSet<(Timestamp, u64)>,
}

/// A position in the list of all orders: after everything up to this time and id.
pub type After = (Timestamp, u64);

/// Which orders to list.
#[derive(Debug, Clone, Copy, Default)]
pub struct Query {
    /// Only those changed at this time or later.
    pub since: Option<Timestamp>,
    /// Only those after this position.
    pub after: Option<After>,
    /// Leave out so many.
    pub skip: usize,
    /// At most so many.
    pub size: usize,
}

impl Orders {
    /// Makes the orders that a shop begins with.
    pub fn new(count: u64) -> Self {
        let first: Timestamp = Timestamp::constant(1_767_225_600, 0); // 2026-01-01
        let mut orders = Self::default();
        for id in 1..=count.min(ORDERS_MAX) {
            let seconds = i64::try_from((id - 1) / ORDERS_A_SECOND).unwrap_or(i64::MAX);
            orders.put(make(id, first + seconds.seconds()));
        }
        orders
    }

    /// Returns how many there are.
    pub fn count(&self) -> u64 {
        self.by_id.len() as u64
    }

    /// Adds new orders, as many as there is room for, and returns their ids. Those of the till
    /// (`is_listed` is false) are in no list until they change: the shop calls about them.
    pub fn add(&mut self, count: u64, is_listed: bool, now: Timestamp) -> Vec<u64> {
        let first = self.count() + 1;
        let last = (self.count() + count).min(ORDERS_MAX);
        for id in first..=last {
            let order = make(id, now);
            if is_listed {
                self.put(order);
            } else {
                self.by_id.insert(id, order);
            }
        }
        (first..=last).collect()
    }

    /// Changes the orders with the lowest ids, and returns how many it changed.
    pub fn change(&mut self, count: u64, now: Timestamp) -> u64 {
        let last = count.min(self.count());
        for id in 1..=last {
            if let Some(order) = self.by_id.get(&id) {
                let mut order = order.clone();
                self.by_time.remove(&(order.updated_at, id));
                order.revision += 1;
                order.status = "shipped";
                order.updated_at = now;
                self.put(order);
            }
        }
        last
    }

    /// Returns an order.
    pub fn get(&self, id: u64) -> Option<&Order> {
        self.by_id.get(&id)
    }

    /// Lists orders by time and id, and says whether there are more.
    pub fn list(&self, query: &Query) -> (Vec<&Order>, bool) {
        let from_time = query.since.map(|since| (since, 0));
        let from = match (from_time, query.after) {
            (Some(since), Some((time, id))) => since.max((time, id + 1)),
            (Some(since), None) => since,
            (None, Some((time, id))) => (time, id + 1),
            (None, None) => (Timestamp::MIN, 0),
        };
        let mut rest = self.by_time.range(from..).skip(query.skip);
        let page = rest.by_ref().take(query.size);
        let page = page.filter_map(|(_, id)| self.by_id.get(id)).collect();
        (page, rest.next().is_some())
    }

    fn put(&mut self, order: Order) {
        self.by_time.insert((order.updated_at, order.id));
        self.by_id.insert(order.id, order);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(orders: &Orders, query: &Query) -> (Vec<u64>, bool) {
        let (page, more) = orders.list(query);
        (page.into_iter().map(|order| order.id).collect(), more)
    }

    #[test]
    fn orders_repeat() {
        let (first, second) = (Orders::new(50), Orders::new(50));
        assert_eq!(first.by_id, second.by_id);
        assert_eq!(first.count(), 50);
        assert!(first.by_id.values().all(|order| order.total_cents > 0));
    }

    #[test]
    fn equal_times_occur() {
        let orders = Orders::new(6);
        assert_eq!(
            orders.get(1).unwrap().updated_at,
            orders.get(3).unwrap().updated_at
        );
        assert_ne!(
            orders.get(3).unwrap().updated_at,
            orders.get(4).unwrap().updated_at
        );
    }

    #[test]
    fn a_page_ends_between_orders_of_one_time() {
        let orders = Orders::new(10);
        let mut query = Query {
            size: 4,
            ..Query::default()
        };
        let mut seen = Vec::new();
        loop {
            let (page, more) = ids(&orders, &query);
            let last = orders.get(*page.last().unwrap()).unwrap();
            query.after = Some((last.updated_at, last.id));
            seen.extend(page);
            if !more {
                break;
            }
        }
        assert_eq!(seen, (1..=10).collect::<Vec<_>>());
    }

    #[test]
    fn since_includes_its_own_time() {
        let orders = Orders::new(10);
        let since = orders.get(5).unwrap().updated_at;
        let query = Query {
            since: Some(since),
            size: 100,
            ..Query::default()
        };
        assert_eq!(ids(&orders, &query), (vec![4, 5, 6, 7, 8, 9, 10], false));
        let query = Query { skip: 6, ..query };
        assert_eq!(ids(&orders, &query), (vec![10], false));
    }

    #[test]
    fn a_changed_order_moves_to_the_end() {
        let mut orders = Orders::new(5);
        let now: Timestamp = "2026-11-21T10:00:00Z".parse().unwrap();
        assert_eq!(orders.change(2, now), 2);
        assert_eq!(orders.add(1, true, now), [6]);
        let query = Query {
            size: 100,
            ..Query::default()
        };
        assert_eq!(ids(&orders, &query).0, [3, 4, 5, 1, 2, 6]);
        assert_eq!(orders.get(1).unwrap().revision, 1);
        assert_eq!(orders.count(), 6);
    }
}
