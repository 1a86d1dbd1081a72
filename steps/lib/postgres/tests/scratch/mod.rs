//! A schema of a test's own on the PostgreSQL that `./test` starts.

use tokio_postgres::Row;
use towpath_step_postgres::{Server, Session, Settings};

/// A schema, which goes when the next one of its name is made.
pub(crate) struct Scratch {
    /// The URL, with the schema as the only one that is searched.
    pub(crate) url: String,
    /// A connection to it.
    pub(crate) session: Session,
}

/// Where PostgreSQL is, as its URL.
///
/// # Panics
///
/// Panics, saying how to start it, if it is not there: a test never skips.
pub(crate) fn url() -> String {
    std::env::var("TOWPATH_TEST_POSTGRES_URL").unwrap_or_else(|_| {
        panic!("`TOWPATH_TEST_POSTGRES_URL` is not set: run `./test`, which starts a PostgreSQL")
    })
}

/// Connects to a URL.
pub(crate) async fn connect(url: &str) -> Session {
    let settings = Settings {
        url,
        password: None,
        certificates: None,
        application: "test",
    };
    let server = Server::new(&settings).expect("the URL can be read");
    server.connect().await.expect("PostgreSQL lets us in")
}

impl Scratch {
    /// Makes one and runs SQL in it. The name is that of the test.
    pub(crate) async fn new(name: &str, sql: &str) -> Self {
        let url = format!("{}?options=-c%20search_path%3D{name}", url());
        let session = connect(&url).await;
        let make = format!("DROP SCHEMA IF EXISTS {name} CASCADE; CREATE SCHEMA {name}; {sql}");
        session
            .client
            .batch_execute(&make)
            .await
            .expect("the schema can be made");
        Self { url, session }
    }

    /// Runs SQL.
    pub(crate) async fn run(&self, sql: &str) {
        self.session
            .client
            .batch_execute(sql)
            .await
            .expect("the SQL runs");
    }

    /// Runs a query.
    pub(crate) async fn query(&self, sql: &str) -> Vec<Row> {
        self.session
            .client
            .query(sql, &[])
            .await
            .expect("the query runs")
    }

    /// The one number that a query gives.
    pub(crate) async fn number(&self, sql: &str) -> i64 {
        self.query(sql).await.first().expect("a row").get(0)
    }
}
