//! One batch, one transaction.
//!
//! # Invariants
//!
//! - `only_the_message_at_fault_fails`: an error of the data takes the statement back, and each
//!   half of its records is tried by itself, until one record is left to blame.
//! - An error that may pass ends the transaction: nothing of the batch is written.
//! - Nothing counts as written before the transaction is committed.

use std::time::Duration;

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error};
use towpath_step::StepError;
use towpath_step_postgres::{Meaning, explain, meaning};

use crate::config::Config;
use crate::record::{Record, Target};
use crate::statement::{Statement, rows, statement};
use crate::waves::groups;

/// A batch that is being written.
pub(crate) struct Transaction<'t> {
    pub(crate) client: &'t Client,
    pub(crate) target: &'t Target,
    pub(crate) config: &'t Config,
}

/// Which messages failed: their places in the batch, and why.
pub(crate) type Failed = Vec<(usize, StepError)>;

impl Transaction<'_> {
    /// Writes records and commits. Returns those that failed; an error is one of all of them.
    pub(crate) async fn write(&self, records: &[Record<'_>]) -> Result<Failed, Error> {
        self.client
            .batch_execute(&begin(self.config.statement_timeout.duration()))
            .await?;
        let mut failed = Vec::new();
        for group in groups(records) {
            self.write_group(&group, &mut failed).await?;
        }
        match self.client.batch_execute("COMMIT").await {
            Ok(()) => Ok(failed),
            // A trigger that waited for the end: there is no telling whose fault it is, unless
            // there is only one.
            Err(error) if meaning(&error) == Meaning::Data => match records {
                [record] => Ok(vec![(record.index, explain(&error))]),
                _ => Box::pin(self.one_by_one(records)).await,
            },
            Err(error) => Err(error),
        }
    }

    async fn one_by_one(&self, records: &[Record<'_>]) -> Result<Failed, Error> {
        let mut failed = Vec::new();
        for record in records {
            failed.extend(self.write(std::slice::from_ref(record)).await?);
        }
        Ok(failed)
    }

    async fn write_group(&self, group: &[&Record<'_>], failed: &mut Failed) -> Result<(), Error> {
        let Some(first) = group.first() else {
            return Ok(());
        };
        let places: Vec<usize> = first.values.keys().copied().collect();
        let statement = statement(&places, self.target, self.config);
        // The first part to be tried is the last of the list.
        let mut parts = vec![group];
        while let Some(part) = parts.pop() {
            self.client.batch_execute("SAVEPOINT part").await?;
            match self.write_part(&statement, part).await {
                Ok(missing) => {
                    self.client.batch_execute("RELEASE SAVEPOINT part").await?;
                    failed.extend(missing);
                }
                Err(error) if meaning(&error) == Meaning::Data => {
                    let back = "ROLLBACK TO SAVEPOINT part; RELEASE SAVEPOINT part";
                    self.client.batch_execute(back).await?;
                    if let [record] = part {
                        failed.push((record.index, explain(&error)));
                    } else {
                        let (one, two) = part.split_at(part.len() / 2);
                        parts.extend([two, one]);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn write_part(
        &self,
        statement: &Statement,
        part: &[&Record<'_>],
    ) -> Result<Failed, Error> {
        let rows = rows(part);
        let mut missing = Vec::new();
        if let Some(sql) = &statement.missing {
            for row in self.client.query_typed(sql, &[(&rows, Type::TEXT)]).await? {
                let number: i32 = row.get(0);
                let record = usize::try_from(number)
                    .ok()
                    .and_then(|number| part.get(number));
                missing.extend(record.map(|record| (record.index, self.no_row(record))));
            }
        }
        self.client
            .execute_typed(&statement.write, &[(&rows, Type::TEXT)])
            .await?;
        Ok(missing)
    }

    fn no_row(&self, record: &Record<'_>) -> StepError {
        let key = self.target.key.iter().filter_map(|place| {
            let value = record.values.get(place)?;
            Some(format!(
                "`{}` {}",
                self.target.column(*place).name,
                value.get()
            ))
        });
        StepError::permanent(format!(
            "there is no row with {}",
            key.collect::<Vec<_>>().join(" and ")
        ))
    }
}

/// The settings hold for the transaction only, so that a pool in between may hand the connection
/// to somebody else. Times without an offset are taken as UTC; constraints that could wait for the
/// end do not, so that it is known whose fault it is.
fn begin(timeout: Duration) -> String {
    format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; \
         SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = 'ISO, YMD'; \
         SET LOCAL IntervalStyle = 'iso_8601'; SET LOCAL statement_timeout = {}; \
         SET CONSTRAINTS ALL IMMEDIATE",
        timeout.as_millis().clamp(1, i32::MAX as u128)
    )
}
