//! Which records go in one statement.
//!
//! # Invariants
//!
//! - `the_last_message_about_a_row_wins`: two records about one row are written in their order,
//!   whether by one statement (whose SQL keeps the last) or by two.
//! - A record that lacks a column leaves it alone, so records with different columns are in
//!   different statements.

use std::collections::{BTreeMap, HashMap};

use crate::record::Record;

/// The most bytes of bodies that go in one statement.
const STATEMENT_BYTES_MAX: usize = 8 << 20;

/// Puts records together, each group for one statement, in the order in which they are written.
pub(crate) fn groups<'r, 'a>(records: &'r [Record<'a>]) -> Vec<Vec<&'r Record<'a>>> {
    let mut done = Vec::new();
    let mut wave = Wave::default();
    for record in records {
        let columns: Vec<usize> = record.values.keys().copied().collect();
        let earlier = wave.columns_of.get(record.key.as_str());
        if !record.key.is_empty() && earlier.is_some_and(|earlier| *earlier != columns) {
            done.append(&mut std::mem::take(&mut wave).into_groups());
        }
        wave.add(record, columns);
    }
    done.append(&mut wave.into_groups());
    done
}

/// Groups that may be written in any order.
#[derive(Default)]
struct Wave<'r, 'a> {
    columns_of: HashMap<&'r str, Vec<usize>>,
    /// By columns: the groups, each of them but the last full, and the size of the last.
    groups: BTreeMap<Vec<usize>, (Vec<Vec<&'r Record<'a>>>, usize)>,
}

impl<'r, 'a> Wave<'r, 'a> {
    fn add(&mut self, record: &'r Record<'a>, columns: Vec<usize>) {
        let bytes: usize = record.values.values().map(|value| value.get().len()).sum();
        let (groups, size) = self.groups.entry(columns.clone()).or_default();
        if groups.is_empty() || *size + bytes > STATEMENT_BYTES_MAX {
            groups.push(Vec::new());
            *size = 0;
        }
        *size += bytes;
        if let Some(group) = groups.last_mut() {
            group.push(record);
        }
        self.columns_of.insert(&record.key, columns);
    }

    fn into_groups(self) -> Vec<Vec<&'r Record<'a>>> {
        self.groups
            .into_values()
            .flat_map(|(groups, _)| groups)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;

    /// Records of the form (key, columns); returns the indices in each group.
    #[track_caller]
    fn check(records: &[(&str, &[usize])], expect: &[&[usize]]) {
        let value: &RawValue = RawValue::TRUE;
        let records: Vec<Record<'_>> = records
            .iter()
            .enumerate()
            .map(|(index, (key, columns))| Record {
                index,
                values: columns.iter().map(|place| (*place, value)).collect(),
                key: (*key).to_owned(),
            })
            .collect();
        let groups: Vec<Vec<usize>> = groups(&records)
            .into_iter()
            .map(|group| group.into_iter().map(|record| record.index).collect())
            .collect();
        assert_eq!(groups, expect);
    }

    #[test]
    fn records_with_the_same_columns_go_together() {
        check(
            &[("a", &[0, 1]), ("b", &[0, 1]), ("c", &[0, 1])],
            &[&[0, 1, 2]],
        );
        check(
            &[("a", &[0, 1]), ("b", &[0, 2]), ("c", &[0, 1])],
            &[&[0, 2], &[1]],
        );
    }

    #[test]
    fn the_last_message_about_a_row_wins() {
        check(&[("a", &[0, 1]), ("a", &[0, 1])], &[&[0, 1]]);
        check(
            &[("a", &[0, 1]), ("a", &[0, 2]), ("a", &[0, 1])],
            &[&[0], &[1], &[2]],
        );
        check(
            &[("a", &[0, 2]), ("b", &[0, 1]), ("a", &[0, 1])],
            &[&[1], &[0], &[2]],
        );
    }

    #[test]
    fn new_rows_have_no_key_to_be_in_each_others_way() {
        check(&[("", &[0]), ("", &[1]), ("", &[0])], &[&[0, 2], &[1]]);
    }
}
