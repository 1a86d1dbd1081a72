//! Numbered orders, a page at a time.

use serde_json::{Value, json};

/// A page of orders.
pub(crate) struct Page {
    /// The orders.
    pub(crate) orders: Vec<Value>,
    /// Where the next page is, if there is one.
    pub(crate) next: Option<String>,
}

/// Lists what there is of the orders 1 to `released`, from `since` on.
pub(crate) fn page(released: u64, since: u64, size: u64) -> Page {
    let first = since.max(1);
    let after = first.saturating_add(size.clamp(1, 1000)).min(released + 1);
    let orders = (first..after)
        .map(|n| json!({ "id": format!("order-{n}"), "n": n, "cents": 100 + n % 9900 }))
        .collect();
    let next = (after <= released && after > first)
        .then(|| format!("/orders?updated_since={after}&size={size}"));
    Page { orders, next }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(released: u64, since: u64, expect: &[u64], next: Option<&str>) {
        let page = page(released, since, 3);
        let numbers: Vec<u64> = page
            .orders
            .iter()
            .filter_map(|order| order["n"].as_u64())
            .collect();
        assert_eq!(numbers, expect);
        assert_eq!(page.next.as_deref(), next);
    }

    #[test]
    fn pages_follow_each_other_without_a_gap() {
        check(0, 1, &[], None);
        check(2, 0, &[1, 2], None);
        check(3, 1, &[1, 2, 3], None);
        check(5, 1, &[1, 2, 3], Some("/orders?updated_since=4&size=3"));
        check(5, 4, &[4, 5], None);
        check(5, 9, &[], None);
    }
}
