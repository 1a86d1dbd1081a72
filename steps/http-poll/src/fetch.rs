//! Gets one page, with a little patience.

use std::time::{Duration, SystemTime};

use towpath_step::{Result, StepError, tracing};
use towpath_step_http::{Answer, Client, HeaderMap, Method, Request, Url, Verdict};

/// How often a page is asked for before the run is given back: a walk of a hundred pages would
/// hardly ever end if one bad answer threw it back to the beginning.
const TRIES: u32 = 4;

/// The wait after the first bad answer; each one after is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// Gets pages.
#[derive(Debug)]
pub(crate) struct Fetch {
    pub(crate) client: Client,
    pub(crate) headers: HeaderMap,
    /// The longest wait that is waited out here.
    pub(crate) patience: Duration,
}

impl Fetch {
    /// Gets a page. An error says what is to become of the run.
    pub(crate) async fn page(&self, url: &Url) -> Result<Answer> {
        let mut wait = FIRST_WAIT;
        for number in 1.. {
            let error = match self.once(url).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let asked = error.delay();
            let this_wait = asked.unwrap_or(wait);
            let may_wait = error.fate() != towpath_step::Fate::Permanent;
            if !may_wait || number == TRIES || this_wait > self.patience {
                return Err(error);
            }
            tracing::debug!("asking again in {this_wait:?}: {error}");
            tokio::time::sleep(this_wait).await;
            wait *= 2;
        }
        unreachable!("the last try returns");
    }

    async fn once(&self, url: &Url) -> Result<Answer> {
        let request = Request {
            method: Method::GET,
            url: url.clone(),
            headers: self.headers.clone(),
            body: None,
        };
        let answer = match self.client.send(request).await {
            Ok(answer) => answer,
            Err(failure) if failure.may_pass() => return Err(failure.into()),
            Err(failure) => return Err(StepError::from(failure).into_permanent()),
        };
        match answer.verdict(&[], SystemTime::now()) {
            Verdict::Done => Ok(answer),
            // The source is busy, and says for how long: that is no failure.
            Verdict::Retry { after: Some(after) } => {
                Err(StepError::rebound(after, answer.complaint()))
            }
            Verdict::Retry { after: None } => Err(StepError::retry(answer.complaint())),
            Verdict::Permanent => Err(StepError::permanent(answer.complaint())),
        }
    }
}
