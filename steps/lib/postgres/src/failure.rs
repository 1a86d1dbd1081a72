//! What an error of the database means: whose fault it is, and whether it may pass.

use std::error::Error as _;

use tokio_postgres::Error;
use tokio_postgres::error::DbError;
use tokio_postgres::types::WrongType;
use towpath_step::StepError;

/// The most that is repeated of what the database says: it may quote a whole row.
const TEXT_BYTES_MAX: usize = 600;

/// What an error means for whoever waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// It may be over later: the connection is lost, the server is busy or going down, two
    /// transactions were in each other's way, it took too long, or who logs in is not known yet.
    Passing,
    /// It is the fault of the data: a constraint, a value that its type cannot hold.
    Data,
    /// It is the fault of the configuration: a name that is not there, SQL that is none, a right
    /// that was not given.
    Setup,
}

/// No connection.
#[derive(Debug, thiserror::Error)]
pub enum Unreachable {
    /// The name of the server cannot be found out.
    #[error("cannot find the address of `{host}`")]
    Name {
        /// The name.
        host: String,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server cannot be reached, or does not let us in.
    #[error("cannot connect to PostgreSQL at {place}")]
    Connect {
        /// Where.
        place: String,
        /// Why not.
        #[source]
        source: Error,
    },
}

impl Unreachable {
    /// Makes a step's error of it: tried again, because servers come back and passwords change.
    pub fn into_step_error(self) -> StepError {
        let says = match &self {
            Self::Connect { source, .. } => source.as_db_error().map(sentence),
            Self::Name { .. } => None,
        };
        match says {
            Some(says) => StepError::retry(self).because([says]),
            None => StepError::from_dyn(&self),
        }
    }
}

/// Says what an error means.
pub fn meaning(error: &Error) -> Meaning {
    match error.as_db_error() {
        Some(error) => meaning_of(error.code().code(), error.message()),
        // A value of another type than was asked for is no trouble of the network: it stays.
        None if error
            .source()
            .is_some_and(<dyn std::error::Error>::is::<WrongType>) =>
        {
            Meaning::Setup
        }
        None => Meaning::Passing,
    }
}

/// The codes are in appendix A of the manual of PostgreSQL.
fn meaning_of(code: &str, message: &str) -> Meaning {
    match code {
        // A row that a policy forbids has the code of a missing right.
        "42501" if message.contains("row-level security") => Meaning::Data,
        // A server that became a standby takes no writes: another one does.
        "25006" => Meaning::Passing,
        _ => match code.get(..2).unwrap_or_default() {
            "08" | "25" | "28" | "3D" | "40" | "53" | "55" | "57" | "58" | "F0" | "XX" => {
                Meaning::Passing
            }
            "0A" | "26" | "34" | "3F" | "42" => Meaning::Setup,
            _ => Meaning::Data,
        },
    }
}

/// Makes a step's error of an error: permanent or a retry, by its meaning.
pub fn explain(error: &Error) -> StepError {
    let Some(db) = error.as_db_error() else {
        let reason = if error.is_closed() {
            "the connection to PostgreSQL was lost"
        } else {
            "PostgreSQL cannot be spoken to"
        };
        let step_error = StepError::from_dyn(error).context(reason);
        return match meaning(error) {
            Meaning::Passing => step_error,
            Meaning::Data | Meaning::Setup => step_error.into_permanent(),
        };
    };
    let says = sentence(db);
    match meaning(error) {
        Meaning::Passing => StepError::retry(says),
        Meaning::Data | Meaning::Setup => StepError::permanent(says),
    }
}

/// What the database says, in a sentence.
fn sentence(error: &DbError) -> String {
    let mut text = format!("PostgreSQL says: {}", error.message());
    for more in [error.detail(), error.hint(), error.where_()]
        .into_iter()
        .flatten()
    {
        text.push_str("; ");
        text.push_str(more.trim_end_matches('.'));
    }
    if text.len() > TEXT_BYTES_MAX {
        let end = (0..=TEXT_BYTES_MAX)
            .rev()
            .find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or_default());
        text.push('…');
    }
    format!("{} ({})", text.replace('\n', " "), error.code().code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_apart_by_whose_fault_they_are() {
        for code in [
            "08006", "40001", "40P01", "53300", "55P03", "57014", "57P01", "28P01", "25006",
        ] {
            assert_eq!(meaning_of(code, ""), Meaning::Passing, "{code}");
        }
        for code in [
            "23505", "23503", "22P02", "22001", "22P05", "21000", "P0001", "44000",
        ] {
            assert_eq!(meaning_of(code, ""), Meaning::Data, "{code}");
        }
        for code in [
            "42P01", "42703", "42601", "42P10", "3F000", "42501", "0A000",
        ] {
            assert_eq!(meaning_of(code, ""), Meaning::Setup, "{code}");
        }
        let policy = "new row violates row-level security policy for table \"t\"";
        assert_eq!(meaning_of("42501", policy), Meaning::Data);
    }
}
